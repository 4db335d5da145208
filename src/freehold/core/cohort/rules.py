"""The rules of the two hot primitives for a whole cohort: every tensor has a leading client axis.

With pairs (X, G) an SGD step is one fused product, `W.baddbmm_(G.T, X, alpha=-1)`; or, where all clients started from one W and
took few rows, no product at all: W stays `base + coeff.T @ rows`. Clients are sorted by their steps, so that each step runs on
a prefix, views into what is stacked. A client in it whose own step is padding is given a rate of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from freehold.core.batching import is_mapped
from freehold.core.cohort.bank import Bank, opened
from freehold.core.cohort.lowrank import dense
from freehold.core.cohort.passes import Grads, Pass, Runner
from freehold.core.cohort.replay import run
from freehold.core.cohort.walk import Stride, Walk
from freehold.core.objective import Objective, descend, gradient
from freehold.core.steps import Batch, Steps
from freehold.core.trees import State
from freehold.errors import HiddenTensor


class Rules(NamedTuple):
    """What `descend` and `gradient` follow; None: their definitions."""

    descend: Callable[..., Any] | None
    gradient: Callable[..., Any] | None


def rules_of(name: str) -> Rules:
    """The rules of an executor."""
    return {"vmap": Rules(None, None), "stacked": Rules(_stacked, _gradient), "lowrank": Rules(_lowrank, _gradient)}[name]


def _stacked(size: int, objective: Objective, state: State, batches: Any, lr: float | Tensor) -> State:
    return _descend(size, objective, state, batches, lr, factor=False)


def _lowrank(size: int, objective: Objective, state: State, batches: Any, lr: float | Tensor) -> State:
    return _descend(size, objective, state, batches, lr, factor=True)


def _descend(size: int, objective: Objective, state: State, batches: Any, lr: float | Tensor, factor: bool) -> State:
    objective, state = _plain(objective), dense(state)
    if objective.private is not None or not isinstance(batches, (Steps, list, tuple)):
        result: State = _mapped(descend.fn, objective, state, batches, lr)
        return result
    return Descent(size, objective, state, batches, lr, factor).run()


def _gradient(size: int, objective: Objective, state: State, batch: Batch) -> tuple[State, State]:
    objective, state = _plain(objective), dense(state)
    if objective.private is not None:
        result: tuple[State, State] = _mapped(gradient.fn, objective, state, batch)
        return result
    params, rest = parts(objective, state)
    real = batch["real"]
    like = next((v for v in params.values() if v.is_floating_point()), None)
    seeds = real * (1 / real.sum(-1).clamp(min=1).to(like.dtype if like is not None else torch.float32))[:, None]
    found, _ = run(Pass(objective, params, rest, batch, seeds))
    grads = {k: found.of(k, v) for k, v in params.items()}
    for anchor, mu in objective.pulls:
        grads |= {k: grads[k] + _wide(mu, v) * (v - anchor[k]) for k, v in params.items() if k in anchor}
    grads |= {k: grads[k] + slope for k, slope in objective.tilt.items() if k in params}
    return grads, {k: found.buffers.get(k, v) for k, v in rest.items()}


class Descent:
    """One call of `descend` for a cohort."""

    def __init__(
        self,
        size: int,
        objective: Objective,
        state: State,
        batches: Steps | Sequence[Batch],
        lr: float | Tensor,
        factor: bool,
    ) -> None:
        self.objective, self.state = objective, state
        self.params, self.rest = parts(objective, state)
        dtype = next((v.dtype for v in self.params.values()), torch.float32)
        self.walk = Walk(batches, lr, dtype)
        self.banks: dict[str, Bank] = {}
        # What might stay factored: one matrix for all, that nothing but gradients and pulls towards itself will move.
        self.shared = {
            k: v
            for k, v in self.params.items()
            if factor
            and size > 1
            and v.dim() == 3
            and v.stride(0) == 0
            and k not in objective.tilt
            and all(anchor.get(k, v) is v for anchor, _ in objective.pulls)
        }
        self.own = {k: v if k in self.shared else _copied(v) for k, v in self.params.items()}
        self.own |= self.rest  # copied when a pass first changes them
        self.copied: set[str] = set()
        self.runner: Runner | None = None
        self.shapes: dict[str, torch.Size] = {}

    def run(self) -> State:
        """Take all steps."""
        for stride in self.walk:
            head = {k: self.own[k][: stride.n] for k in self.params}
            rest = {k: self.own[k][: stride.n] for k in self.rest}
            objective = (
                self.objective if stride.n == len(stride.batch["real"]) and not self.objective.held else self._cut(stride.n)
            )
            wanted = Pass(objective, head, rest, stride.batch, stride.seeds, self.banks, stride.picks)
            grads = self._grads(wanted)
            self._open(grads, head, stride.n)
            self._pull(head, stride)
            self._step(grads, head, stride.picks)
            self._refresh(grads.buffers, stride)
        out: dict[str, Any] = {k: self.banks[k].result() if k in self.banks else self.own[k] for k in self.state}
        return out

    def _grads(self, wanted: Pass) -> Grads:
        shapes = {k: v.shape[1:] for k, v in wanted.batch.items()}
        if shapes == self.shapes and self.runner is not None:
            return self.runner.run(wanted)
        grads, self.runner = run(wanted)
        self.shapes = shapes
        return grads

    def _cut(self, n: int) -> Objective:
        if not self.objective.held:
            return self.objective
        return replace(self.objective, held={k: v[:n] for k, v in self.objective.held.items()})

    def _open(self, grads: Grads, head: dict[str, Tensor], n: int) -> None:
        """After the first step: which weights stay factored, and which are built after all."""
        for name in [k for k in self.shared if k not in self.banks]:
            mine = [p for p in grads.pairs if p.name == name]
            bank = (
                None
                if name in grads.rest or any(p.name == name for p in grads.scattered)
                else opened(self.walk, self.shared[name], mine)
            )
            if bank is not None:
                self.banks[name] = bank
                continue
            del self.shared[name]
            self.own[name] = _copied(self.own[name])
            head[name] = self.own[name][:n]

    def _pull(self, head: State, stride: Stride) -> None:
        for name, value in head.items():
            pulls = [(anchor[name], _times(stride.pace, mu, stride.n)) for anchor, mu in self.objective.pulls if name in anchor]
            if name in self.banks:
                for _, by in pulls[:1]:
                    self.banks[name].shrink(sum((by for _, by in pulls[1:]), by), stride.n)
            elif len(pulls) == 1:
                value.lerp_(pulls[0][0][: stride.n], _wide(pulls[0][1], value))
            elif pulls:
                value.add_(sum(_wide(by, value) * (anchor[: stride.n] - value) for anchor, by in pulls))
            if name in self.objective.tilt:
                slope = self.objective.tilt[name][: stride.n]
                if isinstance(stride.pace, Tensor):
                    value.addcmul_(slope, _wide(stride.pace, value), value=-1)
                else:
                    value.sub_(slope, alpha=stride.pace)

    def _step(self, grads: Grads, head: State, picks: Tensor | None) -> None:
        for pair in grads.pairs:
            if pair.name in self.banks:
                self.banks[pair.name].push(pair.x, pair.g, picks)
            else:
                head[pair.name].baddbmm_(pair.g.mT, pair.x, alpha=-1)
        for part in grads.scattered:
            part.add_to(head[part.name], -1)
        for name, g in grads.rest.items():
            head[name].sub_(g)

    def _refresh(self, buffers: State, stride: Stride) -> None:
        for name in self.rest:
            if name not in buffers:
                continue
            if name not in self.copied:
                self.copied.add(name)
                self.own[name] = _copied(self.own[name])
            now, seen = self.own[name][: stride.n], buffers[name]
            now.copy_(seen if stride.even else torch.where(_wide(stride.live, seen), seen, now))


def parts(objective: Objective, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what is trained, the rest)."""
    rest = {k: v for k, v in state.items() if k in objective.buffers}
    return {k: v for k, v in state.items() if k not in rest}, rest


def _plain(objective: Objective) -> Objective:
    """The objective with plain tensors; HiddenTensor if its losses hide one of a client's."""
    for cell in getattr(objective.losses, "__closure__", None) or ():
        for leaf in tree_leaves(cell.cell_contents):
            if isinstance(leaf, Tensor) and is_mapped(leaf):
                raise HiddenTensor(
                    "The losses of an objective close over a client's tensor, which a rule for the whole cohort cannot see.",
                    hint="Put it into `Objective.held`, with `fix(objective, {name: tensor})`, and read it from the state.",
                )
    held, tilt = dense(objective.held), dense(objective.tilt)
    return replace(objective, held=held, pulls=dense(objective.pulls), tilt=tilt)


def _mapped(definition: Callable[..., Any], *args: Any) -> Any:
    """The definition, under vmap."""
    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, args)
    return vmap(definition, in_dims=axes, randomness="error")(*args)


def _copied(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def _times(pace: float | Tensor, mu: float | Tensor, n: int) -> float | Tensor:
    return pace * (mu[:n] if isinstance(mu, Tensor) else mu)


def _wide(by: float | Tensor, like: Tensor) -> Any:
    return by.view(-1, *[1] * (like.dim() - 1)) if isinstance(by, Tensor) else by
