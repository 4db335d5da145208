"""FedPer: a part of the model stays at home. Arivazhagan et al. 2019, arXiv:1912.00818."""

from __future__ import annotations

from collections.abc import Callable

from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Task, Tree, descend, difference, split


def fedper(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """The body is shared, the head is personal; both are trained together."""
    return keeping(task, "fedper", task.head, lr=lr)


def keeping(task: Task, name: str, personal: Callable[[str], bool], *, lr: float) -> Algorithm:
    """FedAvg of a part of the model, the part that `personal` names being each node's own. Nothing named: FedAvg."""
    mine, common = split(task.init, personal)

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        local = descend(task.objective, {**shared, **personal}, steps, lr)
        return ClientResult(difference({k: local[k] for k in shared}, shared), {k: local[k] for k in personal})

    return Algorithm(
        name=name,
        task=task,
        init=lambda: common,
        enroll=lambda shared: mine,
        client_update=client_update,
        personalize=lambda shared, personal: {**shared, **personal},
    )
