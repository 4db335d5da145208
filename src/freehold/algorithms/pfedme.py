"""pFedMe: personalization by Moreau envelopes. Dinh et al., NeurIPS 2020, arXiv:2006.08848."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, ClientResult, Count, Rate, Round, Steps, Strength, Task, Tree
from freehold.core.objective import descend, proximal
from freehold.core.trees import choose, difference, mix, scale


def pfedme(
    task: Task, *, lr: Rate = 0.005, lam: Strength = 15.0, inner_steps: Count = 5, inner_lr: Rate = 0.05, beta: Rate = 1.0
) -> Algorithm:
    """On each batch, theta approximately solves `min loss(theta) + lam/2 ||theta - w||^2` by `inner_steps` of SGD from w, and
    `w -= lr lam (w - theta)`; the server sets `x = (1 - beta) x + beta mean(w)`. The client predicts with its last theta.

    `inner_lr * lam` must stay below 2, and `lr * lam` at most 1.
    """
    gradients_only(task, "pfedme", "several gradients of the same examples in a step")

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        now: Tree = {"w": shared, "theta": personal}
        for batch in steps:
            w = now["w"]
            theta = descend(proximal(task.objective, w, lam), w, [batch] * inner_steps, inner_lr)
            now = choose(batch["live"], {"w": mix(w, theta, lr * lam), "theta": theta}, now)
        return ClientResult(scale(difference(now["w"], shared), beta), now["theta"])

    return replace(
        fedavg(task, lr=lr),
        name="pfedme",
        enroll=lambda shared: shared,
        client_update=client_update,
        personalize=lambda shared, personal: personal,
    )
