"""`select`: each client serves what is best for it, and leaves local-only only for a gain that its validation data shows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from freehold.algorithms.requirements import gradients_only
from freehold.core import Algorithm, Batch, ClientResult, Round, Steps, Tree
from freehold.errors import UsageError

FEWEST = 5
"""Validation examples below which nothing can be told, and the baseline stays."""


def prefer(losses: Tensor, real: Tensor) -> Tensor:
    """One-hot [J] choice among candidates by their `losses` [J, n] on the examples that are `real` [n]; the first is the
    baseline.

    A candidate is eligible if its mean paired gain over the baseline exceeds one standard error of that mean, a little more
    where the error is estimated from few examples; the eligible one with the largest gain is chosen, else the baseline. With
    no difference, one candidate is eligible in about 16 of 100 cases, by chance.
    """
    count = real.sum()
    gains = torch.where(real, losses[:1] - losses, 0)
    mean = gains.sum(1) / count.clamp(min=1)
    spread = torch.where(real, (gains - mean[:, None]) ** 2, 0).sum(1) / (count - 1).clamp(min=1)
    eligible = (mean > _deviations((count - 1).clamp(min=1)) * (spread / count.clamp(min=1)).sqrt()) & (count >= FEWEST)
    best = torch.where(eligible, mean, 0).argmax()
    return torch.nn.functional.one_hot(best, len(losses))


def _deviations(freedom: Tensor) -> Tensor:
    """The quantile of Student's t that one standard deviation is of the normal: Fisher's expansion at 1; 1.14 for 4 degrees
    of freedom, 1 for many."""
    return 1 + 1 / (2 * freedom) + 1 / (4 * freedom**2) + 1 / (16 * freedom**3)


def select(candidates: Mapping[str, Algorithm]) -> Algorithm:
    """Run all candidates side by side, the first being the baseline (local-only); predict with what `prefer` chooses.

    What it sends is what its candidates send together. `adapt` returns each candidate's adapted state and the choice.
    """
    names = list(candidates)
    first = candidates[names[0]]
    weightings = {a.weighting for a in candidates.values() if a.name != "local"}
    if len(candidates) < 2 or len(weightings) > 1 or any(a.task is not first.task for a in candidates.values()):
        raise UsageError(
            f"select cannot run {', '.join(names)} side by side: it needs two or more algorithms of one task and one weighting.",
            hint="Build all candidates from the same task, and leave out those that weight contributions in another way.",
        )
    task = first.task
    if sum(a.name != "local" for a in candidates.values()) > 1:
        gradients_only(task, "select", "several gradients of the same examples in a step")

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        results = {n: a.client_update(round, shared[n], personal[n], steps) for n, a in candidates.items()}
        return ClientResult(
            {n: r.contribution for n, r in results.items()},
            {n: r.personal for n, r in results.items()},
            {f"{n}/{k}": v for n, r in results.items() for k, v in r.metrics.items()},
        )

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        own = {n: a.adapt(shared[n], personal[n], steps, validation) for n, a in candidates.items()}
        outputs = [a.outputs(shared[n], own[n], validation["x"]) for n, a in candidates.items()]
        losses = torch.stack([task.losses(out, validation["y"]) for out in outputs])
        return {**own, "choice": prefer(losses, validation["real"])}

    def predict(shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        outputs = torch.stack([a.outputs(shared[n], personal[n], x) for n, a in candidates.items()])
        choice = personal.get("choice", torch.nn.functional.one_hot(torch.tensor(0, device=outputs.device), len(names)))
        return torch.where(choice.view(-1, *[1] * (outputs.dim() - 1)) == 1, outputs, 0).sum(0)

    return Algorithm(
        name="select(" + ", ".join(names) + ")",
        task=task,
        init=lambda: {n: a.init() for n, a in candidates.items()},
        broadcast=lambda server: {n: a.broadcast(server[n]) for n, a in candidates.items()},
        enroll=lambda shared: {n: a.enroll(shared[n]) for n, a in candidates.items()},
        client_update=client_update,
        server_update=lambda round, server, mean: {n: a.server_update(round, server[n], mean[n]) for n, a in candidates.items()},
        adapt=adapt,
        personalize=lambda shared, personal: first.personalize(shared[names[0]], personal[names[0]]),
        predict=predict,
        weighting=weightings.pop() if weightings else first.weighting,
        statistics=frozenset(n for n, a in candidates.items() if a.statistics),
        associative=all(a.associative for a in candidates.values()),
        in_step=any(a.in_step for a in candidates.values()),
    )
