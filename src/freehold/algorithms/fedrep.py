"""FedRep: first the personal head, then the shared body. Collins et al., ICML 2021, arXiv:2102.07078."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedper import fedper
from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, ClientResult, Count, Rate, Round, Steps, Task, Tree, descend, difference, fix


def fedrep(task: Task, *, lr: Rate = 0.1, head_passes: Count = 1) -> Algorithm:
    """FedPer, but one after the other: `head_passes` times the round's steps for the head on the body held still, then once
    the round's steps for the body under that head.
    """
    gradients_only(task, "fedrep", "several gradients of the same examples in a step")

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        head = personal
        for _ in range(head_passes):
            head = descend(fix(task.objective, shared), head, steps, lr)
        body = descend(fix(task.objective, head), shared, steps, lr)
        return ClientResult(difference(body, shared), head)

    return replace(fedper(task, lr=lr), name="fedrep", client_update=client_update)
