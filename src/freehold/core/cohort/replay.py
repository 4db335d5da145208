"""Which runner a pass gets: a plan where its model can be put down as one, else the tape, else vmap alone.

A plan is made from the first pass of a loss on data of a shape, and used once its gradients were those of the tape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from freehold.core.cohort.passes import Grads, Pass, Runner, Standing
from freehold.core.cohort.program import Plan
from freehold.core.cohort.recording import CannotReplay, record
from freehold.core.cohort.tape import Plain, Tape
from freehold.core.objective import Objective
from freehold.core.trees import State

How: TypeAlias = Literal["replayed", "taped", "mapped"]
"""As a plan; through its own code, with gradients of Linear layers factored; through its own code under vmap."""

Signature: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about a loss, on data of one shape."""

    how: How
    why: str
    """Why it is not replayed; empty if it is."""
    batch: Mapping[str, tuple[int, ...]]
    """Shapes of a client's batch."""


_CHOSEN: WeakKeyDictionary[Any, dict[Signature, tuple[Runner, Finding]]] = WeakKeyDictionary()


def explain(objective: Objective) -> list[Finding]:
    """How passes of an objective ran for cohorts in this process so far; one finding for each shape of data."""
    return [finding for _, finding in _CHOSEN.get(objective.losses, {}).values()]


def run(wanted: Pass) -> tuple[Grads, Runner]:
    """Forward and backward, and what ran it: it can run any further pass of this objective on data of this shape."""
    try:
        known = _CHOSEN.setdefault(wanted.objective.losses, {})
    except TypeError:  # a loss that cannot be a key
        known = {}
    signature = _signature(wanted)
    if signature in known:
        runner = known[signature][0]
        return runner.run(wanted), runner
    runner, finding, grads = _choose(wanted)
    known[signature] = runner, finding
    return grads, runner


def known_plan(wanted: Pass) -> Plan | None:
    """The plan that such a pass has, if it was found."""
    try:
        found = _CHOSEN.get(wanted.objective.losses, {}).get(_signature(wanted))
    except TypeError:
        return None
    return found[0] if found is not None and isinstance(found[0], Plan) else None


def _choose(wanted: Pass) -> tuple[Runner, Finding, Grads]:
    runner: Runner = Tape()
    how: How = "taped"
    why = ""
    try:  # on a copy: a pass that fails may have changed its batch
        grads = runner.run(wanted._replace(batch={k: v.clone() for k, v in wanted.batch.items()}))
    except RuntimeError as error:
        if wanted.factored:
            raise
        runner, how, why = Plain(), "mapped", str(error).splitlines()[0]
        grads = runner.run(wanted)
    shapes = {k: tuple(v.shape[1:]) for k, v in wanted.batch.items()}
    try:
        plan = Plan(_recorded(wanted))
        if plan.reads_built(name for name, weight in wanted.factored.items() if isinstance(weight, Standing)):
            raise CannotReplay("a weight that is not built is read by more than Linears")
        found = plan.run(wanted)
        _compare(found, grads, wanted)
        if not wanted.factored:  # where a model begins, a gradient may be zero by chance
            moved = wanted._replace(params={k: _elsewhere(v) for k, v in wanted.params.items()})
            _compare(plan.run(moved), runner.run(moved), moved)
    except (CannotReplay, RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
        why = "; ".join(filter(None, (why, (str(error) or type(error).__name__).splitlines()[0])))
        return runner, Finding(how=how, why=why, batch=shapes), grads
    return plan, Finding(how="replayed", why="", batch=shapes), found


def _elsewhere(t: Tensor) -> Tensor:
    """A parameter some way from where it is."""
    way = torch.arange(t[0].numel(), device=t.device).cos().view(t.shape[1:]).to(t.dtype)
    return t + 0.1 * way if t.is_floating_point() else t


def _recorded(wanted: Pass) -> Any:
    def first(state: State) -> State:
        return {k: v[0] for k, v in state.items()}

    objective = wanted.objective
    alone = Objective(losses=objective.losses, buffers=objective.buffers, held=first(objective.held))
    return record(alone, first(wanted.params), first(wanted.rest), first(wanted.batch))


def _compare(found: Grads, expected: Grads, wanted: Pass) -> None:
    slopes = {name: expected.of(name, value) for name, value in wanted.params.items()}
    largest = max((_size(g) for g in slopes.values()), default=0.0)
    for name, value in wanted.params.items():
        if not _close(found.of(name, value), slopes[name], largest):
            raise CannotReplay(f"its plan gave another gradient of {name} than the model itself")
    for name in wanted.rest:
        mine, theirs = (g.buffers.get(name, wanted.rest[name]) for g in (found, expected))
        if not _close(mine, theirs, 0):
            raise CannotReplay(f"its plan left another {name} than the model itself")


def _size(t: Tensor) -> float:
    return float(t.detach().abs().nan_to_num().max()) if t.numel() else 0.0


def _close(a: Tensor, b: Tensor, largest: float) -> bool:
    """Up to rounding: of their own size, and of the gradients' as a whole, for one that ought to be zero."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    own, whole = (1e-9, 1e-11) if a.dtype == torch.float64 else (1e-4, 1e-6)
    return torch.allclose(a, b, rtol=own, atol=own * _size(b) + whole * largest, equal_nan=True)


def _signature(wanted: Pass) -> Signature:
    trees = (wanted.params, wanted.rest, wanted.objective.held, wanted.batch)
    return tuple(tuple((k, v.shape[1:], v.dtype) for k, v in tree.items()) for tree in trees)
