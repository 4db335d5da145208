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
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from freehold.core.batching import is_mapped
from freehold.core.cohort.bank import Bank, Table, opened, opened_on_own, opened_table
from freehold.core.cohort.factors import dense
from freehold.core.cohort.passes import Grads, Pass, Runner
from freehold.core.cohort.private import Clipping
from freehold.core.cohort.program import Plan
from freehold.core.cohort.replay import known_plan, run
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
    if _unforetold(objective) or not isinstance(batches, (Steps, list, tuple)):
        result: State = _mapped(descend.fn, objective, state, batches, lr)
        return result
    return Descent(size, objective, state, batches, lr, factor).run()


def _gradient(size: int, objective: Objective, state: State, batch: Batch) -> tuple[State, State]:
    objective, state = _plain(objective), dense(state)
    if _unforetold(objective):
        result: tuple[State, State] = _mapped(gradient.fn, objective, state, batch)
        return result
    params, rest = parts(objective, state)
    real = batch["real"]
    like = next((v for v in params.values() if v.is_floating_point()), None)
    seeds = real * (1 / real.sum(-1).clamp(min=1).to(like.dtype if like is not None else torch.float32))[:, None]
    wanted = Pass(objective, params, rest, batch, seeds)
    if objective.private is None:
        found, _ = run(wanted)
        grads = {k: found.of(k, v) for k, v in params.items()}
    else:
        clipping = Clipping(objective, objective.private)
        found = clipping.gradients(wanted, 1.0)
        grads = {k: found.of(k, v) for k, v in params.items()}
        clipping.add_noise(grads, batch, 1.0)
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
        self.clipping = Clipping(objective, objective.private) if objective.private is not None else None
        self.banks: dict[str, Bank] = {}
        # One runner for all steps: not every one knows what isn't built.
        factor = factor and (isinstance(batches, Steps) or len({b["x"].shape for b in batches}) < 2)
        # What might stay factored: one matrix for all, that nothing but gradients and pulls towards itself will move.
        self.shared = {
            k: v
            for k, v in self.params.items()
            if factor
            and objective.private is None  # noise has full rank
            and size > 1
            and v.dim() == 3
            and v.stride(0) == 0
            and k not in objective.tilt
            and all(anchor.get(k, v) is v for anchor, _ in objective.pulls)
        }
        self.own = {k: v if k in self.shared else _copied(v) for k, v in self.params.items()}
        self.own |= self.rest  # copied when a pass first changes them
        self.tables: dict[str, Table] = {}
        self.copied: set[str] = set()
        self.runner: Runner | None = None
        self.shapes: dict[str, torch.Size] = {}

    def run(self) -> State:
        """Take all steps."""
        n, head, rest, objective = -1, {}, {}, self.objective
        pulled = bool(self.objective.pulls or self.objective.tilt)
        for stride in self.walk:
            if stride.n != n:  # views of the clients that still have work
                n = stride.n
                head = {k: self.own[k][:n] for k in self.params}
                rest = {k: self.own[k][:n] for k in self.rest}
                objective = self._cut(n)
            wanted = Pass(objective, head, rest, stride.batch, stride.seeds, self.banks, self.tables, stride.picks)
            grads = self.clipping.gradients(wanted, stride.pace) if self.clipping is not None else self._grads(wanted)
            if len(self.shared) > len(self.banks) + len(self.tables):
                self._open(grads, head, n)
            if pulled:
                self._pull(head, stride)
            self._step(grads, head, stride.picks)
            if self.clipping is not None:
                self.clipping.add_noise(head, stride.batch, -stride.pace)
            if grads.buffers:
                self._refresh(grads.buffers, rest, stride)
        kept: dict[str, Any] = {k: bank.result() for k, bank in self.banks.items()}
        kept |= {k: table.result() for k, table in self.tables.items()}
        out: dict[str, Any] = {k: kept.get(k, self.own[k]) for k in self.state}
        return out

    def _foresee(self, wanted: Pass) -> None:
        """Before the first step: weights that a known plan gives the clients' own rows and nothing else stay factored."""
        plan = known_plan(wanted)
        if plan is None or self.walk.steps is None:
            return
        for name in plan.raw & self.shared.keys():
            bank = opened_on_own(self.walk, self.shared[name])
            if bank is not None:
                self.banks[name] = bank
        if plan.raw and not plan.reads_x and plan.raw <= self.banks.keys():
            self.walk.skipped = frozenset({"x"})

    def _grads(self, wanted: Pass) -> Grads:
        if self.runner is None:
            self._foresee(wanted)
        if self.runner is not None and self.walk.steps is not None:
            return self.runner.run(wanted)
        shapes = {k: v.shape[1:] for k, v in wanted.batch.items()}
        if self.runner is not None and shapes == self.shapes:
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
        for name in [k for k in self.shared if k not in self.banks and k not in self.tables]:
            parts = [p for p in grads.scattered if p.name == name]
            pairs = [p for p in grads.pairs if p.name == name]
            # Only a plan says who reads a weight: one that is not built may be read by nothing that wants it built.
            plan = self.runner if isinstance(self.runner, Plan) and name not in grads.rest else None
            multiplied = plan is not None and not parts and not plan.reads_built([name])
            if multiplied and (bank := opened(self.walk, self.shared[name], pairs)) is not None:
                self.banks[name] = bank
                continue
            looked_up = plan is not None and not pairs and not plan.reads_built([name], but_by=F.embedding)
            if looked_up and (table := opened_table(self.walk, self.shared[name], parts)) is not None:
                self.tables[name] = table
                continue
            del self.shared[name]
            self.own[name] = _copied(self.own[name])
            head[name] = self.own[name][:n]

    def _pull(self, head: State, stride: Stride) -> None:
        for name, value in head.items():
            pulls = [(anchor[name], _times(stride.pace, mu, stride.n)) for anchor, mu in self.objective.pulls if name in anchor]
            kept = self.banks.get(name) or self.tables.get(name)
            if kept is not None:
                for _, by in pulls[:1]:
                    kept.shrink(sum((by for _, by in pulls[1:]), by), stride.n)
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
            if part.name in self.tables:
                self.tables[part.name].push(part)
            else:
                part.add_to(head[part.name], -1)
        for name, g in grads.rest.items():
            head[name].sub_(g)

    def _refresh(self, buffers: State, rest: dict[str, Tensor], stride: Stride) -> None:
        for name in self.rest:
            if name not in buffers:
                continue
            if name not in self.copied:
                self.copied.add(name)
                self.own[name] = _copied(self.own[name])
                rest[name] = self.own[name][: stride.n]
            now, seen = rest[name], buffers[name]
            now.copy_(seen if stride.even else torch.where(_wide(stride.live, seen), seen, now))


def parts(objective: Objective, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what is trained, the rest)."""
    rest = {k: v for k, v in state.items() if k in objective.buffers}
    return {k: v for k, v in state.items() if k not in rest}, rest


def _unforetold(objective: Objective) -> bool:
    """Whether a noise of the caller's own wants the gradient of each example."""
    return objective.private is not None and objective.private.noised_sum is not None


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
