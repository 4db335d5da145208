"""Per-FedAvg: a start from which one step personalizes well. Fallah et al., NeurIPS 2020, arXiv:2002.07948."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from freehold.algorithms.finetuned import fedavg_finetuned
from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, Batch, ClientResult, Rate, Round, State, Steps, Task, Tree
from freehold.core.objective import descend, gradient
from freehold.core.trees import add, choose, difference, move, scale, split


def per_fedavg(task: Task, *, lr: Rate = 0.1, inner_lr: Rate = 0.01) -> Algorithm:
    """First-order: `theta = w - inner_lr g(w; D)`, `w -= lr g(theta; D')`, where D' is the batch after D (the last one is its
    own successor). The client predicts with w after the plan's adaptation steps of SGD with `inner_lr`.
    """

    def meta_gradient(w: State, d: State, after: Batch) -> State:
        return d

    return _per_fedavg(task, "per-fedavg", lr, inner_lr, meta_gradient)


def per_fedavg_hf(task: Task, *, lr: Rate = 0.1, inner_lr: Rate = 0.01, delta: Rate = 0.001) -> Algorithm:
    """Hessian-free: as per-fedavg, with the Hessian-vector product by finite differences,
    `w -= lr (d - inner_lr (g(w + delta d; D'') - g(w - delta d; D'')) / (2 delta))`, `d = g(theta; D')`; D'' comes after D'.
    """

    def meta_gradient(w: State, d: State, after: Batch) -> State:
        ahead, behind = (gradient(task.objective, move(w, scale(d, s)), after)[0] for s in (delta, -delta))
        return add(d, scale(difference(ahead, behind), -inner_lr / (2 * delta)))

    return _per_fedavg(task, "per-fedavg-hf", lr, inner_lr, meta_gradient)


def _per_fedavg(
    task: Task, name: str, lr: float, inner_lr: float, meta_gradient: Callable[[State, State, Batch], State]
) -> Algorithm:
    gradients_only(task, name, "several gradients of the same examples in a step")

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        w = shared
        for batch, second, third in zip(steps, steps.ahead(1), steps.ahead(2), strict=True):
            theta = descend(task.objective, w, [batch], inner_lr)
            d, _ = gradient(task.objective, theta, second)
            buffers, _ = split(theta, task.objective.buffers.__contains__)
            after = {**move(w, scale(meta_gradient(w, d, third), -lr)), **buffers}
            w = choose(batch["live"], after, w)
        return ClientResult(difference(w, shared), personal)

    return replace(fedavg_finetuned(task, lr=lr, tune_lr=inner_lr), name=name, client_update=client_update)
