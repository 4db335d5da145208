"""FedRoD: one head for everybody's classes and one for one's own. Chen and Chao, ICLR 2022, arXiv:2107.00778."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from freehold.algorithms.requirements import gradients_only, output_per_class
from freehold.core import Algorithm, Batch, ClientResult, Rate, Round, State, Steps, Task, Tree
from freehold.core.objective import descend, fix
from freehold.core.trees import difference, split, zeros

OWN = "own."


def fedrod(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """The shared model minimizes the *balanced* loss `ce(g(f(x)) + log n_y)`, n_y being the client's examples per class; the
    personal head h minimizes the client's own loss `ce(g(f(x)) + h(f(x)))`, with g and f held still in it.

    Linear personal head (the paper's main variant), zero at first: a newcomer predicts with the shared model.
    """
    gradients_only(task, "fedrod", "the counts of the client's classes")
    output_per_class(task, "fedrod")
    head, _ = split(task.init, task.head)

    def losses(state: State, batch: Batch) -> tuple[Tensor, State]:
        own = {k.removeprefix(OWN): v for k, v in state.items() if k.startswith(OWN)}
        seen = task.run({k: state[k] for k in task.init}, batch, training=True)
        generic = F.cross_entropy(seen.outputs + state["log_share"], batch["y"], reduction="none")
        joined = seen.outputs.detach() + task.top(own, seen.features.detach())
        return generic + task.losses(joined, batch["y"]), seen.buffers

    objective = replace(task.objective, losses=losses)

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        mine = steps.everything()
        counts = (F.one_hot(mine["y"], task.classes) * mine["real"][:, None]).sum(0)
        share = counts.to(next(iter(head.values())).dtype) / counts.sum()
        log_share = share.clamp(min=1e-9).log()
        start = {**shared, **{OWN + k: v for k, v in personal.items()}}
        after = descend(fix(objective, {"log_share": log_share}), start, steps, lr)
        return ClientResult(difference({k: after[k] for k in shared}, shared), {k: after[OWN + k] for k in personal})

    return Algorithm(
        name="fedrod",
        task=task,
        init=lambda: task.init,
        enroll=lambda shared: zeros(head),
        client_update=client_update,
        # Both heads are linear in the same features, so their sum is one head.
        personalize=lambda shared, personal: {**shared, **{k: shared[k] + v for k, v in personal.items()}},
    )
