"""Asynchronous rounds (FedBuff, Nguyen et al., AISTATS 2022): a round is a server update, and closes when its buffer is full.

A contribution is known by the round that asked for it, and counts in the round that is open when it has a place there: once.
A node is asked again when that round has closed, so its next work starts from the personal state that was committed then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import sqlalchemy as sa

from freehold.coordinator import study_records as records
from freehold.coordinator.buffer import Buffer
from freehold.coordinator.run import OpenRun, Spans, check
from freehold.coordinator.store import Put, Store
from freehold.drawing import draw_cohort
from freehold.errors import Conflict, CoordinatorError, Late, UnknownRun
from freehold.wire.messages import Settled

Count = Callable[[OpenRun, str, Put, bytes | int, float, Spans, float], Awaitable[None]]
"""Adds to the sum of a run's open round: (run, node, what is stored, the same to look into, weight, its tensors, damping)."""


def draw(run: OpenRun, buffer: Buffer, round: int, population: Sequence[str]) -> list[str]:
    """Whom a round asks: who is still at work, unless for so long that it would be refused, and others up to the cohort."""
    busy: list[str] = []
    if run.state == "training" and run.round == round - 1:
        waits = [node for node in run.cohort if node not in run.received]
        busy = [node for node in waits if round - buffer.since.get(node, run.round) <= buffer.most]
    return sorted({*busy, *_others(run, busy, population, round=round, free=_concurrency(run, population) - len(busy))})


def refilled(run: OpenRun, population: Sequence[str], heard: str) -> list[str]:
    """The open round's cohort, and others in the place of those that were heard; one is just being heard."""
    at_work = sum(node != heard and node not in run.received for node in run.cohort)
    free = _concurrency(run, population) - at_work
    return sorted({*run.cohort, *_others(run, [*run.cohort, *run.received], population, round=run.round, free=free)})


def once_more(run: OpenRun, population: Sequence[str]) -> list[str]:
    """At the deadline: also those that declined, and others as if those that were asked were gone."""
    free = _concurrency(run, population)
    return sorted({*run.cohort, *_others(run, [*run.cohort, *run.received], population, round=run.round, free=free)})


def _concurrency(run: OpenRun, population: Sequence[str]) -> int:
    return min(run.plan.round.cohort or len(population), len(population))


def _others(run: OpenRun, without: Sequence[str], population: Sequence[str], *, round: int, free: int) -> list[str]:
    rest = [node for node in population if node not in without]
    size = min(free, len(rest))
    return draw_cohort(rest, size, seed=run.run.seed, index=round) if size > 0 else []


def earlier(run: OpenRun) -> range:
    """The rounds before the open one whose contributions may still count: of this cycle, and not too old."""
    assert run.buffer is not None
    cycle = run.plan.training.cycle(run.round) * (run.plan.training.rounds + 1)
    return range(max(cycle, run.round - run.buffer.most), run.round)


def check_asked(run: OpenRun, node: str, round: int) -> None:
    """Raises UnknownRun or Late unless this node was given work in that round, and may still send what came of it."""
    assert run.buffer is not None
    if run.state != "training" or not (round == run.round or round in earlier(run)):
        raise Late(
            f"Round {round} of run {run.id} was too long ago; the run is in round {run.round}.",
            hint=f"The plan lets contributions count that are up to {run.buffer.most} rounds old; ask for work again.",
        )
    if node not in (run.cohort if round == run.round else run.buffer.asked.get(round, ())):
        raise UnknownRun(f"This node was not asked in round {round} of run {run.id}.", hint="Ask for work again.")


def settled(store: Store, run: OpenRun, node: str, round: int) -> Settled | None:
    """What became of a node's contribution; None while it is in an open round, or may still come."""
    row = store.read(lambda c: records.contribution_of(c, run.id, round, node))
    if row is None:
        open_ = run.state == "training" and (round == run.round or round in earlier(run))
        return None if open_ else Settled(run=run.id, round=round, counted="")
    return None if row.counted is None else Settled(run=run.id, round=round, counted=row.sha256 if row.counted else "")


async def contribute(
    store: Store,
    run: OpenRun,
    node: str,
    round: int,
    *,
    weight: float,
    sha256: str,
    body: bytes | Path,
    shown: bytes | int,
    sandbox: str,
    now: Callable[[], float],
    closing: Callable[[], bool],
    count: Count,
) -> None:
    """Enter a contribution into the round that is open when it has a place there, and count it.

    Raises UnknownRun, Late, Conflict, SpecMismatch, TensorsMalformed or StoreError.
    """
    buffer = run.buffer
    assert buffer is not None and run.tally is not None
    spans = await asyncio.to_thread(check, shown, run, run.tally.sum, weight)
    name = run.place_of(round, node, sha256)
    put = await store.put(body, name=name, point="coordinator.contribution", sha256=sha256)
    try:
        there = await _place(store, run, buffer, node, round, sha256, closing)
    except (Conflict, Late, UnknownRun):
        row = store.read(lambda c: records.contribution_of(c, run.id, round, node))
        if row is None or row.place != put.place:
            await store.drop(put)
        raise
    if there is None:
        return
    try:
        into = run.round
        if there == "new":
            arrived = records.Arrived(run.id, round, node, put, weight, now(), into, sandbox)
            await store.write(lambda c: _enter(c, arrived), "coordinator.contribution")
        buffer.entering.discard(node)  # it has its place in the sum instead, from the first step of `count` on
        await count(run, node, put, shown, weight, spans, run.damping(round))
    except Late:
        await store.drop(put)
        raise
    finally:
        buffer.entering.discard(node)
        buffer.notify()


async def _place(
    store: Store, run: OpenRun, buffer: Buffer, node: str, round: int, sha256: str, closing: Callable[[], bool]
) -> str | None:
    """Wait for a place in an open round: "new", "kept" for what is stored and not in its sum, None for what is done."""
    while True:
        row = store.read(lambda c: records.contribution_of(c, run.id, round, node))
        if row is not None and row.sha256 != sha256:
            raise Conflict(
                f"This node has sent another contribution for round {round} of run {run.id} before.",
                hint="The first one counts. The node discards the second when it asks for work.",
            )
        if row is not None and (row.counted is not None or run.received.get(node) == sha256):
            return None
        check_asked(run, node, round)
        if closing():
            raise CoordinatorError("The coordinator is about to stop.", hint="Ask for work again when it is back.")
        if node in run.received:
            raise _overtaken(run.id, round)
        taken = len(run.received) + len(buffer.entering)
        if not run.closing and taken < run.capacity and node not in buffer.entering:
            buffer.entering.add(node)
            return "new" if row is None else "kept"
        await buffer.change()


def _enter(connection: sa.Connection, arrived: records.Arrived) -> None:
    run, into = arrived.run, arrived.summed
    last = records.last_summed(connection, run, arrived.node)
    if last is not None and last >= arrived.round:
        raise _overtaken(run, arrived.round)
    if records.is_closed(connection, run, into):
        raise Late(f"Round {into} of run {run} closed meanwhile.", hint="Nothing is wrong; ask for work again.")
    records.insert_contributions(connection, [arrived])


def _overtaken(run: str, round: int) -> Late:
    return Late(
        f"This node has contributed to run {run} since it was given this work, in round {round}.",
        hint="Its personal state went on meanwhile; ask for work again.",
    )
