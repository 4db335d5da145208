"""APFL: a personal and the shared model, mixed by a learned weight. Deng et al. 2020, arXiv:2003.13461."""

from __future__ import annotations

from dataclasses import replace

import torch

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, ClientResult, Fraction, Rate, Round, Steps, Task, Tree
from freehold.core.objective import descend, gradient
from freehold.core.trees import choose, difference, dot, mix, move, scale


def apfl(task: Task, *, lr: Rate = 0.1, alpha: Fraction = 0.5) -> Algorithm:
    """Predict with `a v + (1 - a) w`; w is trained as in FedAvg, the personal v by the mixture's gradient, and
    `a -= lr <v - w, gradient of the mixture>`, clamped to [0, 1], in every step (equations 5 and 10). `alpha`: a at first.

    alpha = 0 stays FedAvg's model until the first step moves it. After a round, w is the new shared model.
    """
    dtype = next(iter(task.parameters.values())).dtype

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        now: Tree = {"w": shared, **personal}
        for batch in steps:
            w, v, a = now["w"], now["v"], now["alpha"]
            slope, buffers = gradient(task.objective, mix(w, v, a), batch)
            after = {
                "w": descend(task.objective, w, [batch], lr),
                "v": {**move(v, scale(slope, -lr * a)), **buffers},
                "alpha": (a - lr * dot(slope, difference(v, w))).clamp(0, 1),
            }
            now = choose(batch["live"], after, now)
        return ClientResult(difference(now["w"], shared), {"v": now["v"], "alpha": now["alpha"]})

    return replace(
        fedavg(task, lr=lr),
        name="apfl",
        enroll=lambda shared: {"v": shared, "alpha": torch.tensor(alpha, dtype=dtype)},
        client_update=client_update,
        personalize=lambda shared, personal: mix(shared, personal["v"], personal["alpha"]),
    )
