"""kNN-Per: FedAvg's model mixed with nearest neighbors on the node. Marfoq et al., ICML 2022, arXiv:2111.09360."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from freehold.algorithms.fedavg import fedavg
from freehold.algorithms.requirements import features_known, output_per_class
from freehold.core import Algorithm, Batch, Count, Fraction, Rate, Steps, Task, Tree


def knn_per(task: Task, *, lr: Rate = 0.1, neighbors: Count = 10, weight: Fraction = 0.5) -> Algorithm:
    """`p(y|x) = w p_knn(y|x) + (1 - w) p_shared(y|x)` with `p_knn` proportional to `sum exp(-||f(x) - f(x_i)||) [y_i = y]`.

    The sum goes over the `neighbors` nearest of the client's own training examples, in the features f of the shared model.
    w is the best of 0, 0.1, …, 1 on the client's validation examples, or `weight` where it has none. Training is FedAvg's.
    For regression the means of targets are mixed instead.
    """
    (output_per_class if task.classes else features_known)(task, "knn-per")

    def remember(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        mine = steps.everything()
        memory = {"features": task.run(shared, mine).features, "y": mine["y"], "present": mine["real"]}
        said = both(shared, memory, validation["x"])
        scores = torch.stack([_score(mixed(*said, w), validation) for w in grid])
        best = torch.where(validation["real"].any(), grid[scores.argmin()], weight)
        return {**memory, "weight": best}

    def _score(outputs: Tensor, batch: Batch) -> Tensor:
        return torch.where(batch["real"], task.losses(outputs, batch["y"]), 0).sum()

    def both(shared: Tree, memory: Tree, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the neighbors say and what the shared model says: probabilities [B, K], or values."""
        seen = task.run(shared, {"x": x})
        near = torch.cdist(seen.features, memory["features"]).masked_fill(~memory["present"], torch.inf)
        distance, at = near.topk(min(neighbors, near.shape[1]), dim=1, largest=False)
        share = (-distance).softmax(1)  # [B, k]; padding has weight 0
        if not task.classes:
            told = torch.einsum("bk,bk...->b...", share, memory["y"][at].to(share.dtype))
            return told.reshape(seen.outputs.shape), seen.outputs
        votes = torch.nn.functional.one_hot(memory["y"], task.classes).to(share.dtype)[at]  # [B, k, K]
        return torch.einsum("bk,bkc->bc", share, votes), seen.outputs.softmax(1)

    def mixed(told: Tensor, own: Tensor, weight: Tensor) -> Tensor:
        mixture = weight * told + (1 - weight) * own
        return mixture.clamp(min=1e-12).log() if task.classes else mixture

    grid = torch.linspace(0, 1, 11, dtype=next(iter(task.parameters.values())).dtype)
    return replace(
        fedavg(task, lr=lr),
        name="knn-per",
        adapt=remember,
        predict=lambda shared, memory, x: mixed(*both(shared, memory, x), memory["weight"]),
    )
