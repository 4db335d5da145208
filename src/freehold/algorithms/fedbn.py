"""FedBN: normalization layers stay at home. Li et al., ICLR 2021, arXiv:2102.07623."""

from __future__ import annotations

from freehold.algorithms.fedper import keeping
from freehold.core import Algorithm, Rate, Task
from freehold.errors import TaskError


def fedbn(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """FedAvg of everything but the normalization layers, their statistics included: for clients whose features are shifted."""
    if not any(map(task.is_norm, task.init)):
        raise TaskError(
            "fedbn needs a model with normalization layers; without any it is FedAvg.", hint="Use fedavg, or leave this row out."
        )
    return keeping(task, "fedbn", task.is_norm, lr=lr)
