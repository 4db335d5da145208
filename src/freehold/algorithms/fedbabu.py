"""FedBABU: the body is trained under a head that never moves. Oh et al., ICLR 2022, arXiv:2106.06042."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, Batch, ClientResult, Rate, Round, Steps, Task, Tree, descend, difference, fix, split


def fedbabu(task: Task, *, lr: Rate = 0.1, tune_lr: Rate | None = None) -> Algorithm:
    """FedAvg of the body with the head as it was initialized; each client then fits the head to its own data by the plan's
    adaptation steps, with `tune_lr` (default: lr).
    """

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        head, body = split(shared, task.head)
        return ClientResult(difference(descend(fix(task.objective, head), body, steps, lr), body), personal)

    def fit_head(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        head, body = split(shared, task.head)
        return descend(fix(task.objective, body), head, steps, lr if tune_lr is None else tune_lr)

    return replace(
        fedavg(task, lr=lr),
        name="fedbabu",
        client_update=client_update,
        adapt=fit_head,
        personalize=lambda shared, personal: {**shared, **personal},
    )
