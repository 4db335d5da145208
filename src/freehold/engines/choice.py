"""Which executor a cohort runs by, and how many clients at a time: a cost model, and where it is close, a short measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch.utils.flop_counter import FlopCounterMode

from freehold.core import Batch, Executor, Task

ExecutorName: TypeAlias = Literal["auto", "loop", "stacked", "lowrank", "vmap"]
"""How a cohort is computed: one client at a time; or many at once by a batching rule; "auto" chooses."""

Kind: TypeAlias = Literal["loop"] | Executor

KINDS: tuple[Kind, ...] = ("loop", "stacked", "lowrank", "vmap")

CHUNKS = (4, 64)
"""Fewest and most clients that a batched program runs at once."""

FED = 64
"""Clients that the loop is fed at once."""

_CACHE_BYTES = 12 << 20
"""Weights and gradients of a chunk that a core's caches hold."""

_NEAR = 3.0
"""How far from the best estimate an executor is still worth measuring."""

_LONG_S = 5.0
"""Estimated seconds of a run from which on a measurement pays."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one client computes in one local step."""

    flop: float
    """Floating-point operations, forward and backward; of Linear, convolutions and products of matrices."""
    convolved: float
    """The part of them that convolutions take."""
    parameters: int
    itemsize: int
    """Bytes of a number."""
    width: int
    """Numbers of an example."""
    linear: tuple[tuple[int, int], ...]
    """(out, in) of each trained matrix."""

    def chunk(self, name: Kind) -> int:
        """How many clients at once."""
        return FED if name == "loop" else chunk_for(self, factored=name == "lowrank")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An executor, a chunk, and why."""

    executor: Kind
    chunk: int
    why: str
    flop_per_step: float = 0.0
    estimated_us: Mapping[str, float] = field(default_factory=dict)
    """Executor -> estimated microseconds per client and step."""
    measured_us: Mapping[str, float] = field(default_factory=dict)
    """Executor -> what was measured; empty where the estimate decided."""


def load_of(task: Task, batch: Batch) -> Load:
    """Count one pass over a batch; the backward pass costs twice as much."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.objective.losses({**task.init}, batch)
    total = counter.get_flop_counts().get("Global", {})
    convolved = sum(count for op, count in total.items() if "conv" in str(op))
    trained = task.parameters
    return Load(
        flop=3.0 * sum(total.values()),
        convolved=3.0 * convolved,
        parameters=sum(t.numel() for t in trained.values()),
        itemsize=max((t.element_size() for t in trained.values()), default=4),
        width=batch["x"][:1].numel(),
        linear=tuple((t.shape[0], t.shape[1]) for t in trained.values() if t.dim() == 2),
    )


def chunk_for(load: Load, *, factored: bool = False) -> int:
    """Clients whose weights stay in the caches together; of factored weights there is one for all."""
    own = 2 * load.itemsize * load.parameters // (2 if factored else 1)
    fewest, most = CHUNKS
    fits = max(1, _CACHE_BYTES // max(1, own))
    return max(fewest, min(most, 1 << (fits.bit_length() - 1)))


def estimates(load: Load, rows: int, examples: int, clients: int) -> dict[Kind, float]:
    """Executor -> microseconds per client and step on one core, fitted to measurements of logistic regression, an MLP, a CNN, a
    GRU and a transformer. `rows`: what a client passes in a round, of `examples` of its own."""
    chunk, thin = (min(clients, chunk_for(load, factored=f)) for f in (False, True))
    moved = load.itemsize * load.parameters / _BYTES_PER_US
    dense = load.flop - load.convolved
    # Above that, a step's own work hides the Python around it, and what vmap does less well than the loop is all that is left.
    strange = _STRANGE if load.flop > _HEAVY_FLOP else 1.0
    batched = strange * (dense / _BATCHED_FLOP_PER_US + load.convolved / _GROUPED_FLOP_PER_US)
    found: dict[Kind, float] = {
        "loop": _STEP_US + load.flop / _LOOP_FLOP_PER_US + moved,
        "stacked": _CHUNK_US / chunk + batched + 3 * moved,
        "vmap": 2 * _CHUNK_US / chunk + load.flop / _GROUPED_FLOP_PER_US + 15 * moved,
    }
    # The first layer reads the client's own rows, so more passes add none; where it is small, a matrix is never built.
    needed = [(o * i, (examples / 2 if i == load.width else rows) * (o + i)) for o, i in load.linear]
    whole = sum(size for size, _ in needed)
    if share := sum(size for size, room in needed if room < size) / max(1, whole):
        found["lowrank"] = _CHUNK_US / thin + batched * (1 - 0.5 * share * (strange == 1)) + 3 * moved * (1 - 0.8 * share)
    return found


def choose(load: Load, rows: int, examples: int, *, clients: int, device: str = "cpu") -> Choice:
    """The choice of the cost model alone: the same on every machine."""
    found = estimates(load, rows, examples, clients)
    told = {name: round(us, 1) for name, us in found.items()}
    if device != "cpu":
        return Choice(executor="vmap", chunk=CHUNKS[1], why="a GPU wants many clients at once", flop_per_step=load.flop)
    best = min(found, key=lambda name: found[name])
    why = f"the cost model gives it {told[best]:g} µs per client and step" + "".join(
        f", {name} {us:g}" for name, us in told.items() if name != best
    )
    return Choice(executor=best, chunk=load.chunk(best), why=why, flop_per_step=load.flop, estimated_us=dict(told.items()))


def near(choice: Choice, steps: int | None) -> tuple[Kind, ...]:
    """The executors that are worth measuring in a run of so many client-steps; () where it is short or the estimate clear. None:
    all of them."""
    if steps is None:
        return tuple(name for name in KINDS if name in choice.estimated_us)
    best = min(choice.estimated_us.values(), default=0.0)
    close = [name for name in KINDS if choice.estimated_us.get(name, math.inf) < _NEAR * best]
    return tuple(close) if len(close) > 1 and best * steps > _LONG_S * 1e6 else ()


def measured(
    choice: Choice, load: Load, candidates: Iterable[Kind], run: Callable[[Kind, int], tuple[int, Callable[[], object]]]
) -> Choice:
    """Measure candidates: `run(executor, chunk)` gives (client-steps, what computes them). One that fails is out."""
    found: dict[Kind, float] = {}
    for name in candidates:
        try:
            steps, compute = run(name, load.chunk(name))
            compute()  # once for what is made at first use
            begun = time.perf_counter()
            compute()
            found[name] = round((time.perf_counter() - begun) * 1e6 / max(1, steps), 1)
        except RuntimeError:
            continue
    if not found:
        return choice
    best = min(found, key=lambda name: found[name])
    why = f"measured: {found[best]:g} µs per client and step" + "".join(f", {n} {us:g}" for n, us in found.items() if n != best)
    return Choice(
        executor=best,
        chunk=load.chunk(best),
        why=why,
        flop_per_step=load.flop,
        estimated_us=choice.estimated_us,
        measured_us=dict(found.items()),
    )


_STEP_US, _CHUNK_US, _BYTES_PER_US = 200.0, 900.0, 10_000.0
_LOOP_FLOP_PER_US, _BATCHED_FLOP_PER_US, _GROUPED_FLOP_PER_US = 50_000.0, 80_000.0, 42_000.0
_HEAVY_FLOP, _STRANGE = 20e6, 2.5
