"""IFCA: K shared models, each client trains the one that fits it. Ghosh et al., NeurIPS 2020, arXiv:2006.04088."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, Batch, ClientResult, Count, Rate, Round, State, Steps, Task, Tree
from freehold.core.objective import descend
from freehold.core.seeding import normal
from freehold.core.trees import difference, tree_map
from freehold.drawing import digest_seed


def ifca(task: Task, *, lr: Rate = 0.1, clusters: Count = 2) -> Algorithm:
    """Each client picks the center with the least loss on its training data and trains it; a center becomes the mean of
    those who picked it (model averaging), or stays if nobody did. One cluster: FedAvg.

    The first center is the task's initial model, the others are drawn anew with the same mean and spread per tensor. Where
    each of its tensors is constant, the spread is the size of the constant, 0.1 at least: equal centers would never part.
    """
    gradients_only(task, "ifca", "the losses by which a client picks its cluster")
    constant = all(bool((t == t.flatten()[0]).all()) for t in task.parameters.values() if t.numel())

    def centers() -> Tree:
        return {
            k: torch.stack([t, *(_redrawn(t, k, j, constant) if k in task.parameters else t for j in range(1, clusters))])
            for k, t in task.init.items()
        }

    def pick(shared: Tree, steps: Steps) -> Tensor:
        mine = steps.everything()
        outputs = [task.run({k: t[j] for k, t in shared.items()}, mine).outputs for j in range(clusters)]
        losses = torch.stack([torch.where(mine["real"], task.losses(out, mine["y"]), 0).sum() for out in outputs])
        return F.one_hot(losses.argmin(), clusters)

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        mine = pick(shared, steps)
        start = chosen(shared, mine)
        moved = difference(descend(task.objective, start, steps, lr), start)
        placed = tree_map(lambda t: torch.einsum("k,...->k...", mine.to(t.dtype), t), moved)
        return ClientResult({"centers": placed, "members": mine.double()}, {"pick": mine})

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        members = mean["members"]  # [K], share of the cohort's weight
        share = torch.where(members > 0, members, 1)

        def moved(name: str, t: Tensor) -> Tensor:
            if name not in mean["centers"]:
                return t
            step: Tensor = mean["centers"][name]
            return t + step / share.to(t.dtype).view(-1, *[1] * (t.dim() - 1))

        return {k: moved(k, t) for k, t in server.items()}

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        return {"pick": pick(shared, steps)}

    return Algorithm(
        name="ifca",
        task=task,
        init=centers,
        enroll=lambda shared: {"pick": F.one_hot(torch.tensor(0), clusters)},
        client_update=client_update,
        server_update=server_update,
        adapt=adapt,
        personalize=lambda shared, personal: chosen(shared, personal["pick"]),
        statistics=frozenset({"centers", "members"}),
    )


def chosen(centers: Tree, pick: Tensor) -> State:
    """The center that the one-hot `pick` [K] names."""
    return {k: (pick.view(-1, *[1] * (t.dim() - 1)) * t).sum(0).to(t.dtype) for k, t in centers.items()}


def _redrawn(t: Tensor, name: str, index: int, constant: bool) -> Tensor:
    if not t.is_floating_point():
        return t
    key = torch.tensor(digest_seed("ifca", name, index))
    spread = t.mean().abs().clamp(min=0.1) if constant else t.std(correction=0)
    return t.mean() + spread * normal(key, t.shape, dtype=t.dtype)
