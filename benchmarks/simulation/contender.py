"""What is compared: somebody who runs a round of the work and says what it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.simulation.works import Ready

TOLERANCE = 1e-4
"""Of an update, relative in L2: float32 through hundreds of steps, and a ReLU now and then on its other side."""
KINK = 1e-2
"""So far an update in float32 may be off where in float64 it is the same to EXACT: an example whose ReLU or pooling is on its
other side makes another gradient, and one of thousands is enough for more than TOLERANCE."""
EXACT = 1e-9
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


def apart(theirs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The distance of two outcomes, relative to the reference; raises Disagrees where they have other names or shapes."""
    if {k: v.shape for k, v in theirs.items()} != {k: v.shape for k, v in reference.items()}:
        raise Disagrees(f"it gives {sorted(theirs)}, and the plain loop {sorted(reference)}")
    return _norm({k: theirs[k].cpu().double() - v.cpu().double() for k, v in reference.items()}) / _norm(reference)


def allowed(reference: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> float:
    """How far apart outcomes may be: TOLERANCE, and what float32 rounds off whole models that are subtracted."""
    return TOLERANCE + 4 * torch.finfo(torch.float32).eps * _norm(init) / _norm(reference)


def _norm(tree: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(v.cpu().double().square().sum()) for v in tree.values()))
