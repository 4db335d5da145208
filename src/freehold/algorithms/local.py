"""Local-only: each client trains alone, and nothing leaves. The row every other one is to be compared with."""

from __future__ import annotations

from typing import Literal

from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Task, Tree, descend, descend_adam


def local(task: Task, *, lr: Rate = 0.1, optimizer: Literal["sgd", "adam"] = "sgd") -> Algorithm:
    """Each client's own model by SGD, or by Adam, with learning rate `lr`; the contribution is empty."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        if optimizer == "sgd":
            return ClientResult({}, {"model": descend(task.objective, personal["model"], steps, lr)})
        model, memory = descend_adam(task.objective, personal["model"], personal["memory"], steps, lr)
        return ClientResult({}, {"model": model, "memory": memory})

    def enroll(shared: Tree) -> Tree:
        # Adam's memory as it is before the first step, so that personal states have one shape from the start.
        start = {} if optimizer == "sgd" else {"memory": descend_adam(task.objective, task.init, {}, (), lr)[1]}
        return {"model": task.init, **start}

    return Algorithm(
        name="local",
        task=task,
        init=lambda: {},
        enroll=enroll,
        client_update=client_update,
        personalize=lambda shared, personal: personal["model"],
    )
