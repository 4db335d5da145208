"""What a plan names as its task: data, model, loss, metric and splits of a use case, and settings that suit it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from freehold.core import Task
from freehold.data import Population, Prepared, SplitRule
from freehold.data.schema import Schema
from freehold.errors import UnknownName, UsageError, near_miss
from freehold.plan import Scalar, Training, Work

GROUP = "freehold.tasks"
"""The entry-point group in which packages announce tasks."""


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """A use case: everything about it but the algorithm."""

    name: str
    version: str = "1"
    title: str
    """One line for a report's head."""
    build: Callable[[Prepared, int], Task]
    """(prepared data, seed) -> the learning problem with its initial model."""
    load: Callable[[], Population] | None = None
    """The data that ships with it, for the simulator; None: the user brings data."""
    schema: Schema | None = None
    """The columns that its data has to have; None: whatever the user brings."""
    split: SplitRule = field(default_factory=SplitRule)
    training: Training
    """What a plan says of training, unless it is told otherwise."""
    adaptation: Work | None = None
    hyperparameters: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """Algorithm -> hyper-parameters that suit this task; "*" is for every algorithm that knows the name."""
    metric: Literal["accuracy", "r2"] = "accuracy"
    statistics: Literal["client", "federated", "ranges", "none"] = "client"
    """How features are standardized (see `freehold.data.prepare`)."""
    min_examples: int = 10
    clients: Literal["silos", "devices"] = "silos"
    noun: tuple[str, str] = ("client", "clients")
    personal: str = "ditto"
    """The personalized algorithm that a node considers beside local-only and FedAvg."""

    def population(self) -> Population:
        """The data that ships with it; raises UsageError where the user has to bring it."""
        if self.load is None:
            raise UsageError(f"The task {self.name} has no data of its own.", hint="Give it a CSV or Parquet file.")
        return self.load()

    def settings(self, algorithm: str, known: Mapping[str, object]) -> dict[str, Scalar]:
        """Hyper-parameters for an algorithm whose own names are `known`."""
        common = {k: v for k, v in self.hyperparameters.get("*", {}).items() if k in known}
        return {**common, **self.hyperparameters.get(algorithm, {})}


def rates(lr: float, *, server_lr: float = 0.05) -> dict[str, Mapping[str, Scalar]]:
    """Hyper-parameters for all shipped algorithms from one local learning rate.

    Where a paper's default is made for the paper's models, the local step is set to `lr` too: pFedMe's inner one, with a
    pull that it can follow in five steps; Per-FedAvg's step at adaptation.
    """
    return {
        "*": {"lr": lr},
        "fedadam": {"lr": lr, "server_lr": server_lr},
        "fedyogi": {"lr": lr, "server_lr": server_lr},
        "fedadagrad": {"lr": lr, "server_lr": server_lr},
        "pfedme": {"lr": 0.5, "lam": 1.0, "inner_lr": lr, "inner_steps": 5},
        "per-fedavg": {"lr": lr, "inner_lr": lr / 2},
        "per-fedavg-hf": {"lr": lr, "inner_lr": lr / 2},
    }


@functools.cache
def _points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value))}


def task_names() -> tuple[str, ...]:
    """The names of all installed tasks, sorted."""
    return tuple(sorted(_points()))


def task_digest(name: str) -> str:
    """`sha256:` and the digest of the file that an installed task's entry point names. What that file imports is not covered.

    Raises UnknownName for a task that is not installed, and UsageError for one without a source file.
    """
    task_definition(name)
    found = importlib.util.find_spec(_points()[name].module)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise UsageError(f"The task {name} has no source file to take a digest of.", hint="Leave task.digest out of the plan.")
    return f"sha256:{hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()}"


def task_definition(name: str) -> TaskDefinition:
    """An installed task by name; raises UnknownName with the near miss."""
    if name not in _points():
        raise UnknownName(f"There is no task or data set named {name!r}.", hint=near_miss(name, _points()))
    definition: TaskDefinition = _points()[name].load()()
    return definition
