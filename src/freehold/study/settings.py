"""How a study is run: nothing in here changes its result, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from freehold.engines import DeviceName, ExecutorName
from freehold.events import Listener, silent
from freehold.plan import Plan

EngineName: TypeAlias = Literal["vector", "loop", "ray"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a comparison: a plan, run once per seed."""

    name: str
    title: str
    plan: Plan
    required: bool = False
    """Without it the study says nothing: where it diverges, the study ends with the error."""
    pooled: bool = False
    """Train on everybody's data in one place: a reference that no federation could run."""
    published: float | None = None
    """Mean over clients in the published table."""
    published_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how to compute."""

    engine: EngineName = "vector"
    executor: ExecutorName = "auto"
    """How the vector engine computes a chunk of clients; "auto" chooses by a cost model, and measures in long runs."""
    device: DeviceName = "cpu"
    explain: bool = False
    """Whether executors are measured in any case, so that what was chosen can be explained."""
    jobs: int = 1
    """Processes; each runs whole cells (one row with one seed) on one thread."""
    processes: int | None = None
    """Workers among which each cell's clients are divided, the cells coming one after the other. None: this process alone, or
    on Ray as many as the cluster has processors free."""
    address: str | None = None
    """Of the Ray cluster."""
    checkpoint: Path | None = None
    """Folder under which an interrupted study leaves its state; None: it leaves nothing."""
    resume: bool = False
    """Go on from the checkpoint of the same study."""
    newcomers: int = 0
    """Clients that never take part, evaluated all the same: the last ones, in the order of the population."""
    models: Path | None = None
    """Folder to which each client's own model is written as safetensors; None: nowhere."""
    listener: Listener = silent
