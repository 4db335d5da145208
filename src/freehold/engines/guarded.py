"""A guard in the simulator: each contribution clipped and noised as a node's guard does, but reproducibly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from freehold.core import Algorithm, ClientResult, Round, Steps, Tree, flatten, unflatten
from freehold.core.seeding import fold, normal
from freehold.errors import PlanError
from freehold.plan import Plan

_GUARD = -7
"""Sets the noise's key apart from those that batches use."""


def guarded(algorithm: Algorithm, plan: Plan) -> Algorithm:
    """The same algorithm, each client's contribution brought down to `max_norm`, with Gaussian noise on every number of it.

    Unchanged unless the plan's unit is "client". The noise follows from the client's key of the round, so a study can be
    repeated; a guard draws from the operating system. Raises PlanError in the first round for what sends whole numbers.
    """
    privacy = plan.privacy
    if privacy.unit != "client" or privacy.max_norm is None or privacy.noise_multiplier is None:
        return algorithm
    most, spread = privacy.max_norm, privacy.max_norm * privacy.noise_multiplier

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        result = algorithm.client_update(round, shared, personal, steps)
        flat = flatten(result.contribution)
        if not flat:
            return result
        if whole := [name for name, t in flat.items() if not t.is_floating_point()]:
            raise PlanError(
                f"{algorithm.name} sends {whole[0]}, which is no floating number, and the guard clips and noises floats only.",
                hint='Choose an algorithm that sends no whole numbers, or unit = "record".',
            )
        size = torch.stack([t.double().square().sum() for t in flat.values()]).sum().sqrt()
        factor = (most / size.clamp(min=1e-12)).clamp(max=1)
        key = fold(steps.keys[0], _GUARD)

        def noised(place: int, t: Tensor) -> Tensor:
            return (t * factor + spread * normal(fold(key, place), t.shape, dtype=torch.float64)).to(t.dtype)

        out = {name: noised(place, t) for place, (name, t) in enumerate(flat.items())}
        return result._replace(contribution=unflatten(out, result.contribution))

    return replace(algorithm, client_update=client_update)
