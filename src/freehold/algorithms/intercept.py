"""FedAvg+local intercept: the shared model, with each client's own base rate. The baseline that unmasks mere base rates."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, Batch, Rate, Steps, Task, Tree, descend, fix, split
from freehold.errors import TaskError


def fedavg_intercept(task: Task, *, lr: Rate = 0.1, tune_lr: Rate | None = None) -> Algorithm:
    """FedAvg; each client then fits the bias of the head, and nothing else, by the plan's adaptation steps with `tune_lr`
    (default: lr). What a personalized algorithm gains beyond this row is more than the share of each class.
    """
    if not any(_is_intercept(task, name) for name in task.parameters):
        raise TaskError(
            "fedavg-intercept needs a head with a bias.", hint="Give the last layer bias=True, or leave this row out."
        )

    def fit(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        bias, rest = split(shared, lambda name: _is_intercept(task, name))
        return descend(fix(task.objective, rest), bias, steps, lr if tune_lr is None else tune_lr)

    return replace(
        fedavg(task, lr=lr), name="fedavg-intercept", adapt=fit, personalize=lambda shared, personal: {**shared, **personal}
    )


def _is_intercept(task: Task, name: str) -> bool:
    return task.head(name) and name.rsplit(".", 1)[-1] == "bias"
