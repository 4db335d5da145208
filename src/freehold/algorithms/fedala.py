"""FedALA: start from a learned blend of old local and new shared parameters. Zhang et al., AAAI 2023, arXiv:2212.01197."""

from __future__ import annotations

from dataclasses import replace

import torch

from freehold.algorithms.fedavg import fedavg
from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, Batch, ClientResult, Count, Rate, Round, State, Steps, Task, Tree
from freehold.core.objective import descend, gradient
from freehold.core.trees import choose, difference, split, tree_map


def fedala(task: Task, *, lr: Rate = 0.1, weight_lr: Rate = 1.0, weight_steps: Count = 5) -> Algorithm:
    """Start from `old + (shared - old) * W` in the head, and from shared elsewhere; W in [0, 1], one weight per parameter, is
    learned by `W -= weight_lr * g * (shared - old)` on the first `weight_steps` batches and kept for the next round; then FedAvg.

    The paper learns W in the first rounds until it converges, on a random 80 % of the data; here every round takes the
    same number of steps. The client predicts with the blend of its last model and the newest shared one.
    """
    gradients_only(task, "fedala", "several gradients of the same examples in a step")
    blended, _ = split(task.parameters, task.head)

    def start(shared: Tree, old: State, weights: State) -> State:
        return {**shared, **{k: old[k] + (shared[k] - old[k]) * w for k, w in weights.items()}}

    def learn(shared: Tree, personal: Tree, steps: Steps) -> State:
        old: State = personal["model"]
        weights: State = personal["weights"]
        for _, batch in zip(range(weight_steps), steps, strict=False):
            slope, _ = gradient(task.objective, start(shared, old, weights), batch)
            moved = {k: (w - weight_lr * slope[k] * (shared[k] - old[k])).clamp(0, 1) for k, w in weights.items()}
            weights = choose(batch["live"], moved, weights)
        return weights

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        weights = learn(shared, personal, steps)
        local = descend(task.objective, start(shared, personal["model"], weights), steps, lr)
        return ClientResult(difference(local, shared), {"model": local, "weights": weights})

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        weights = learn(shared, personal, steps)
        return {"model": start(shared, personal["model"], weights), "weights": weights}

    return replace(
        fedavg(task, lr=lr),
        name="fedala",
        enroll=lambda shared: {"model": shared, "weights": tree_map(torch.ones_like, blended)},
        client_update=client_update,
        adapt=adapt,
        personalize=lambda shared, personal: personal["model"],
    )
