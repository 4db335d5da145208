"""FedAvg: one model for all. McMahan et al., AISTATS 2017, arXiv:1602.05629."""

from __future__ import annotations

from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Task, Tree, descend, difference


def fedavg(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """The weighted average of what each client makes of the shared model by SGD with learning rate `lr`."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        local = descend(task.objective, shared, steps, lr)
        return ClientResult(difference(local, shared), personal)

    return Algorithm(name="fedavg", task=task, init=lambda: task.init, client_update=client_update)
