"""What is compared: somebody who runs a round of the work and says what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.simulation.works import Ready

TOLERANCE = 1e-4
"""Of an update, relative in L2: float32 through hundreds of steps, and a ReLU now and then on its other side."""
SHOWN = 3
"""Clients whose personal states are compared too."""


class Contender(Protocol):
    """Runs rounds. Every round starts from the initial shared state; personal states go on."""

    def round(self, index: int) -> float:
        """Run round `index`, all clients asked; -> seconds: of the processor, on a GPU on the wall."""

    def outcome(self) -> Mapping[str, Tensor]:
        """The mean update of the last round by name, and `personal/CLIENT/NAME` of the first clients where there are any."""

    def close(self) -> None:
        """Free what it holds."""


Maker = Callable[[Ready], AbstractContextManager[Contender]]


class Disagrees(Exception):
    """A contender's update is not that of the plain loop: it did other work, and is not timed."""


def timed(device: torch.device, work: Callable[[], None]) -> float:
    """Seconds of processor time of this process; on a GPU, which works beside it, seconds on the wall until it is done."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    wall = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - wall


def apart(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The distance of two outcomes, relative to the reference; raises Disagrees where they have other names or shapes."""
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in reference.items()}:
        raise Disagrees(f"it gives {sorted(ours)}, and the plain loop {sorted(reference)}")
    off = sum(float((ours[k].cpu().double() - v.cpu().double()).square().sum()) for k, v in reference.items())
    size = sum(float(v.cpu().double().square().sum()) for v in reference.values())
    return float((off / size) ** 0.5) if size else float("inf")
