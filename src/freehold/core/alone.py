"""`gradient` and `descend` for one client, imperatively: leaves, autograd and fused updates in place of functional transforms.

The same mathematics as the definitions beside which it stands, with another rounding. It is followed within `imperative()`
and nowhere else, and only where nobody looks on: under a transform of `torch.func`, and where something is to be
differentiated through it, the definition runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from freehold.core.objective import Objective, descend, gradient
from freehold.core.seated import ModuleLosses, Noisy
from freehold.core.steps import Batch, Steps
from freehold.core.trees import State, split

_on: ContextVar[bool] = ContextVar("whether the primitives run imperatively", default=False)


@contextmanager
def imperative() -> Iterator[None]:
    """Within it, the primitives run imperatively where they can."""
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def _applies(objective: Objective, state: State, lr: float | Tensor = 0.0) -> bool:
    return (
        _on.get()
        and objective.private is None
        and not torch._C._functorch.get_interpreter_stack()
        and not isinstance(lr, Tensor)
        and any(k not in objective.buffers for k in state)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(objective, state)))
    )


def _tensors(objective: Objective, state: State) -> Iterator[Tensor]:
    for tree in (state, objective.held, objective.tilt, *(anchor for anchor, _ in objective.pulls)):
        yield from tree.values()


@gradient.def_one
def _gradient(objective: Objective, state: State, batch: Batch) -> tuple[State, State] | None:
    if not _applies(objective, state):
        return None
    buffers, params = split(state, objective.buffers.__contains__)
    walk = _Walk(objective, {k: t.detach().requires_grad_() for k, t in params.items()})
    grads, seen = walk.gradient(buffers, batch)
    return dict(zip(params, grads, strict=True)), seen


@descend.def_one
def _descend(objective: Objective, state: State, batches: Iterable[Batch], lr: float | Tensor) -> State | None:
    if isinstance(lr, Tensor) or not _applies(objective, state, lr):
        return None
    if not isinstance(batches, (Steps, list, tuple)):
        batches = list(batches)
    losses = objective.losses
    if isinstance(losses, ModuleLosses) and losses.quiet({**objective.held, **state}):
        try:
            return _quietly(losses, objective, state, batches, lr)
        except Noisy:
            pass  # it draws random numbers: by its keys, then
    buffers, walk = _set_out(objective, state)
    for batch, count in _counted(batches):
        if not batch["live"]:
            continue
        grads, buffers = walk.gradient(buffers, batch, count)
        with torch.no_grad():
            torch._foreach_add_(walk.leaves, grads, alpha=-lr)
    return walk.arrived(state, buffers)


def _set_out(objective: Objective, state: State) -> tuple[State, _Walk]:
    buffers, params = split(state, objective.buffers.__contains__)
    return buffers, _Walk(objective, {k: t.detach().clone().requires_grad_() for k, t in params.items()})


def _quietly(losses: ModuleLosses, objective: Objective, state: State, batches: Iterable[Batch], lr: float) -> State:
    """`descend` by a module that needs no exchange of anything between two steps; raises Noisy."""
    buffers, walk = _set_out(objective, state)
    seat = {**objective.held, **{k: v.clone() for k, v in buffers.items()}, **walk.params}
    with losses.settled(seat) as found:
        for batch, count in _counted(batches):
            if count is None and not batch["live"]:
                continue
            with torch.enable_grad():
                each = found(batch)
            grads = walk.gradient_of(each, batch, count)
            with torch.no_grad():
                torch._foreach_add_(walk.leaves, grads, alpha=-lr)
    return walk.arrived(state, seat)


def _counted(batches: Iterable[Batch]) -> Iterable[tuple[Batch, int | None]]:
    return batches.counted() if isinstance(batches, Steps) else ((batch, None) for batch in batches)


class _Walk:
    """An objective, and the leaves that are to follow it."""

    def __init__(self, objective: Objective, params: dict[str, Tensor]) -> None:
        self.objective, self.params, self.leaves = objective, params, list(params.values())
        self.pulls = [
            ([params[k] for k in names], [anchor[k] for k in names], [list(params).index(k) for k in names], mu)
            for anchor, mu in objective.pulls
            if (names := [k for k in params if k in anchor])
        ]
        self.even: dict[int, Tensor] = {}
        self.tilt = [(i, objective.tilt[k]) for i, k in enumerate(params) if k in objective.tilt]

    def gradient(self, buffers: State, batch: Batch, count: int | None = None) -> tuple[list[Tensor], State]:
        """The gradient at the leaves, in their order, and the refreshed buffers. `count`: the real examples, where known."""
        with torch.enable_grad():
            losses, seen = self.objective.losses({**self.objective.held, **buffers, **self.params}, batch)
        return self.gradient_of(losses, batch, count), {k: seen.get(k, v).detach() for k, v in buffers.items()}

    def gradient_of(self, losses: Tensor, batch: Batch, count: int | None) -> list[Tensor]:
        """The gradient of the mean over real examples, without that mean's own steps of the graph, and of the other terms."""
        if losses.requires_grad:
            share = self._share(losses, batch["real"], count)
            grads: Sequence[Tensor | None] = torch.autograd.grad(losses, self.leaves, share, allow_unused=True)
        else:
            grads = (None,) * len(self.leaves)
        found = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, self.leaves, strict=True)]
        return self._bent(found) if self.pulls or self.tilt else found

    def arrived(self, state: State, buffers: State) -> State:
        """The state where the walk ends, in the order of names of the one where it began."""
        return {k: self.params[k].detach() if k in self.params else buffers[k] for k in state}

    def _share(self, losses: Tensor, real: Tensor, count: int | None) -> Tensor:
        """What the loss of each example counts in the mean [B]."""
        if count is None or count != losses.shape[0]:
            return torch.where(real, 1 / real.sum().clamp(min=1).to(losses.dtype), 0)
        if count not in self.even:
            self.even[count] = torch.full_like(losses, 1 / count, requires_grad=False)
        return self.even[count]

    def _bent(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients with what pulls and tilt add to them."""
        with torch.no_grad():
            for mine, anchor, places, mu in self.pulls:
                gaps = torch._foreach_sub(mine, anchor)
                torch._foreach_mul_(gaps, mu)
                for place, gap in zip(places, torch._foreach_add(gaps, [grads[i] for i in places]), strict=True):
                    grads[place] = gap
            for place, slope in self.tilt:
                grads[place] = grads[place] + slope
        return grads
