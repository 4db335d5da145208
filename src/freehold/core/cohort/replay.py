"""Which runner a pass gets."""

from __future__ import annotations

from freehold.core.cohort.tape import Runner, Tape
from freehold.core.objective import Objective
from freehold.core.steps import Batch
from freehold.core.trees import State

_TAPE = Tape()


def runner_for(objective: Objective, params: State, rest: State, batch: Batch) -> Runner:
    """What runs passes of this objective on data of this shape."""
    return _TAPE
