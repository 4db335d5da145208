"""An objective is data, and the two hot primitives that follow it downhill: `gradient` and `descend`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import register_pytree_node

from freehold.core.batching import custom_vmap
from freehold.core.seeding import fold, normal
from freehold.core.steps import Batch
from freehold.core.trees import State, choose, split
from freehold.errors import NotPrivate


class NoisedSum(Protocol):
    """Clips the gradients of examples, sums them and adds noise."""

    def __call__(self, each: State, counts: Tensor, max_norm: float, noise_multiplier: float) -> State:
        """(gradient of each example by name [B, ...], which examples are real [B]) -> the noised sum [...]."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """DP-SGD (Abadi et al. 2016): what one example may add to a step, and the noise that covers it."""

    max_norm: float
    """L2 norm to which the gradient of each example is clipped, over all trained parameters."""
    noise_multiplier: float
    """Standard deviation of the noise on the summed gradient, in units of `max_norm`."""
    expected_batch: float
    """Expected examples in a step under Poisson sampling; the sum is divided by it, not by the real count."""
    noised_sum: NoisedSum | None = None
    """Set: noise that nobody can foretell, as a node needs. None: noise that follows from the batch's key, so that a simulation
    can be repeated; whoever knows its seed can take it away again."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """`mean over real examples of losses({**held, **state}, batch) + sum(mu/2 ||state - anchor||^2) + <tilt, state>`.

    Data, not closures: every tensor it depends on is in sight (it is a pytree), so that a primitive that is vmapped over
    clients can take it apart. Pulls and tilt act on what is trained, not on what is held.
    """

    losses: Callable[[State, Batch], tuple[Tensor, State]]
    """Pure: (state, batch) -> (loss of each example [B], the buffers as this pass leaves them)."""
    buffers: frozenset[str] = frozenset()
    """Names that are not trained: what a pass refreshes, and frozen parameters, which stay as they are."""
    held: State = field(default_factory=dict)
    """A part of the state that stays as it is."""
    pulls: tuple[tuple[State, float | Tensor], ...] = ()
    """(anchor, mu): proximal terms."""
    tilt: State = field(default_factory=dict)
    """A constant added to the gradient, by name."""
    private: Privacy | None = None
    """Set: `gradient` and `descend` are DP-SGD, and the losses themselves are not to be had."""

    def __call__(self, state: State, batch: Batch) -> tuple[Tensor, State]:
        """(value [], refreshed buffers)."""
        if self.private is not None:
            raise NotPrivate(
                "A loss was asked for while record-level privacy is set; only clipped gradients may touch examples.",
                hint="Choose an algorithm that works by descend and gradient alone, e.g. fedavg or ditto.",
            )
        value, seen = _mean_loss(self, state, batch)
        for anchor, mu in self.pulls:
            value = value + 0.5 * mu * sum(((state[k] - anchor[k]) ** 2).sum() for k in self._pulled(anchor, state))
        for k in self._pulled(self.tilt, state):
            value = value + (self.tilt[k] * state[k]).sum()
        return value, seen

    def _pulled(self, by: State, state: State) -> list[str]:
        return [k for k in by if k in state and k not in self.buffers]


def _objective(kept: Iterable[Any], rest: Any) -> Objective:
    held, pulls, tilt = kept
    losses, buffers, private = rest
    pairs = tuple((anchor, mu) for anchor, mu in pulls)
    return Objective(losses=losses, buffers=buffers, held=held, pulls=pairs, tilt=tilt, private=private)


register_pytree_node(Objective, lambda o: ([o.held, o.pulls, o.tilt], (o.losses, o.buffers, o.private)), _objective)


def proximal(objective: Objective, anchor: State, mu: float | Tensor) -> Objective:
    """Add `mu/2 ||state - anchor||^2` over the trained parameters; mu = 0 adds nothing."""
    return replace(objective, pulls=(*objective.pulls, (anchor, mu))) if isinstance(mu, Tensor) or mu else objective


def fix(objective: Objective, rest: State) -> Objective:
    """The same objective, with the part `rest` of the state held still."""
    return replace(objective, held={**objective.held, **rest})


def tilted(objective: Objective, slope: State) -> Objective:
    """Add `<slope, state>`: the gradient gets `slope` added, whatever the data."""
    return replace(objective, tilt={k: objective.tilt[k] + v if k in objective.tilt else v for k, v in slope.items()})


@custom_vmap
def gradient(objective: Objective, state: State, batch: Batch) -> tuple[State, State]:
    """(gradient of the objective by the parameters of `state`, refreshed buffers)."""
    buffers, params = split(state, objective.buffers.__contains__)
    if objective.private is None:
        grads, seen = grad(lambda p: _mean_loss(objective, {**p, **buffers}, batch), has_aux=True)(params) if params else ({}, {})
    else:
        grads, seen = _private_gradient(objective, objective.private, params, buffers, batch), {}
    grads = dict(grads)
    for anchor, mu in objective.pulls:
        grads |= {k: grads[k] + mu * (params[k] - anchor[k]) for k in params if k in anchor}
    grads |= {k: grads[k] + slope for k, slope in objective.tilt.items() if k in params}
    return grads, {k: seen.get(k, v) for k, v in buffers.items()}


@custom_vmap
def descend(objective: Objective, state: State, batches: Iterable[Batch], lr: float | Tensor) -> State:
    """One step of SGD per batch; steps that are padding change nothing."""
    for batch in batches:
        grads, buffers = gradient.fn(objective, state, batch)
        after = {**state, **{k: state[k] - lr * g for k, g in grads.items()}, **buffers}
        state = choose(batch["live"], after, state)
    return state


def descend_adam(
    objective: Objective,
    state: State,
    memory: State,
    batches: Iterable[Batch],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[State, State]:
    """One step of Adam (Kingma and Ba 2015, with bias correction, eps 1e-8) per batch; -> (state, memory).

    `memory` is `{}` at first, then what the last call returned.
    """
    first, second = betas
    params = [k for k in state if k not in objective.buffers]
    if not memory:
        memory = {f"{kind}.{k}": torch.zeros_like(state[k]) for kind in ("mean", "square") for k in params}
        memory = {**memory, "count": torch.zeros((), dtype=torch.float64)}
    for batch in batches:
        grads, buffers = gradient(objective, state, batch)
        count = memory["count"] + 1
        mean = {k: first * memory[f"mean.{k}"] + (1 - first) * grads[k] for k in params}
        square = {k: second * memory[f"square.{k}"] + (1 - second) * grads[k] ** 2 for k in params}
        pace = {k: mean[k] / (1 - first**count).to(mean[k].dtype) for k in params}
        size = {k: (square[k] / (1 - second**count).to(square[k].dtype)).sqrt() + 1e-8 for k in params}
        after = {**state, **{k: state[k] - lr * pace[k] / size[k] for k in params}, **buffers}
        later = {**{f"mean.{k}": v for k, v in mean.items()}, **{f"square.{k}": v for k, v in square.items()}, "count": count}
        state = choose(batch["live"], after, state)
        memory = choose(batch["live"], later, memory)
    return state, memory


def _mean_loss(objective: Objective, state: State, batch: Batch) -> tuple[Tensor, State]:
    losses, seen = objective.losses({**objective.held, **state}, batch)
    real = batch["real"]
    return torch.where(real, losses, 0).sum() / real.sum().clamp(min=1), seen


def no_gradient_per_example(error: RuntimeError) -> NotPrivate:
    """What to raise where torch has no gradient of one example."""
    return NotPrivate(
        f"The model has no gradient per example that torch can compute ({str(error).splitlines()[0]}).",
        hint="Record-level privacy needs layers that vmap knows: recurrent layers and in-place changes are not among them.",
    )


def _private_gradient(objective: Objective, privacy: Privacy, params: State, buffers: State, batch: Batch) -> State:
    """Gradients per example, clipped, summed, noised, divided by the expected batch."""
    rest = {**objective.held, **buffers}

    def loss_of_one(params: State, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.bool, device=x.device)
        single = {"x": x[None], "y": y[None], "real": one, "live": one[0], "key": key, "alone": one[0]}
        return objective.losses({**rest, **params}, single)[0].sum()

    real = batch["real"]
    keys = fold(batch["key"], torch.arange(len(real), device=real.device))
    try:
        each = vmap(grad(loss_of_one), in_dims=(None, 0, 0, 0))(params, batch["x"], batch["y"], keys)
    except RuntimeError as error:
        raise no_gradient_per_example(error) from error
    if privacy.noised_sum is not None:
        summed = privacy.noised_sum(each, real, privacy.max_norm, privacy.noise_multiplier)
        return {k: summed[k] / privacy.expected_batch for k in each}
    norms = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
    # An example whose gradient is not finite counts nothing: NaN passes through any clip and would carry it out.
    weight = torch.where(real & norms.isfinite(), (privacy.max_norm / norms.clamp(min=1e-12)).clamp(max=1), 0)
    spread = privacy.max_norm * privacy.noise_multiplier
    noise_key = fold(batch["key"], -1)
    return {
        k: (
            torch.einsum("b,b...->...", weight, torch.where(weight.view(-1, *[1] * (g.dim() - 1)) > 0, g, 0))
            + spread * normal(fold(noise_key, i), g.shape[1:], dtype=g.dtype)
        )
        / privacy.expected_batch
        for i, (k, g) in enumerate(each.items())
    }
