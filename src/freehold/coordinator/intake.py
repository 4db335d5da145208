"""Contributions as they come in: checked, entered in the store, acknowledged, and added to the sum of their round."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from freehold.coordinator import asynchronous
from freehold.coordinator import study_records as records
from freehold.coordinator.lease import Lease, Superseded
from freehold.coordinator.rounds import Rounds
from freehold.coordinator.run import OpenRun, Spans, check, fold
from freehold.coordinator.store import Put, Store
from freehold.errors import Conflict, Late, StoreError, UnknownRun
from freehold.events import Event, Listener
from freehold.wire.local import close


class Intake:
    """Takes contributions to the open rounds. Methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        rounds: Rounds,
        lease: Lease,
        look_up: Callable[[OpenRun], None],
        closing: Callable[[], bool],
        *,
        clock: Callable[[], float],
        tell: Listener,
    ) -> None:
        """`look_up` reads a run as the store has it; `closing` says whether the coordinator is about to stop."""
        self._store, self._rounds, self._runs, self._lease = store, rounds, rounds.runs, lease
        self._look_up, self._closing, self._clock, self._tell = look_up, closing, clock, tell

    def expects(self, node: str, run: str, round: int) -> OpenRun:
        """The run to which this node may now contribute; raises UnknownRun or Late."""
        found = self._runs.get(run)
        if found is not None and found.buffer is not None:
            asynchronous.check_asked(found, node, round)
            return found
        if found is None or not found.asks(node):
            raise UnknownRun(f"This node was not asked for run {run}.", hint="The study may be over; ask for work again.")
        if not self._lease.held and round > found.round:
            self._look_up(found)  # another coordinator went on, and the node heard of it first
        if round != found.round or found.closing or found.state != "training":
            raise Late(
                f"Round {round} of run {run} is closed; the run is in round {found.round}.",
                hint="Nothing is wrong: the coordinator went on without this contribution.",
            )
        return found

    def shows(self, node: str, sha256: str) -> bool:
        """Whether these bytes belong to work that this node was asked for."""
        if not self._lease.held and not any(run.shows(node, sha256) for run in self._runs.values()):
            for run in list(self._runs.values()):
                self._look_up(run)
        return any(run.shows(node, sha256) for run in self._runs.values())

    async def contribute(
        self, node: str, run: str, round: int, *, weight: float, sha256: str, body: bytes | Path, sandbox: str = ""
    ) -> None:
        """Take a contribution: when this returns, it is in the store and will be counted, once.

        `sandbox`: in what it was trained, as the node says.

        Raises UnknownRun, Late, Conflict, SpecMismatch, WeightRefused, TensorsMalformed or StoreError.
        """
        # A file will be moved, or sent to the bucket; its descriptor goes on to show what was checked.
        shown = body if isinstance(body, bytes) else os.open(body, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._contribute(node, run, round, weight=weight, sha256=sha256, body=body, shown=shown, sandbox=sandbox)
        finally:
            close([shown] if isinstance(shown, int) else [])

    async def _contribute(
        self,
        node: str,
        run: str,
        round: int,
        *,
        weight: float,
        sha256: str,
        body: bytes | Path,
        shown: bytes | int,
        sandbox: str,
    ) -> None:
        open_run = self.expects(node, run, round)
        if open_run.buffer is not None:
            try:
                await asynchronous.contribute(
                    self._store,
                    open_run,
                    node,
                    round,
                    weight=weight,
                    sha256=sha256,
                    body=body,
                    shown=shown,
                    sandbox=sandbox,
                    now=self._clock,
                    closing=self._closing,
                    count=self._count_late,
                )
            finally:
                self._rounds.consider(open_run)
            return
        before = open_run.received.get(node)
        if before is None:
            assert open_run.tally is not None
            if not open_run.is_heavy(shown):
                spans = check(shown, open_run, open_run.tally.sum, weight)
            else:
                spans = await asyncio.to_thread(check, shown, open_run, open_run.tally.sum, weight)
            name = open_run.place_of(round, node, sha256)
            put = await self._store.put(body, name=name, point="coordinator.contribution", sha256=sha256)
            arrived = records.Arrived(run, round, node, put, weight, self._clock(), round, sandbox)
            try:
                before = await self._store.write_alike(self._enter, arrived, "coordinator.contribution")
            except Late:
                await self._store.drop(put)
                raise
            # There and not yet in the sum: the database kept what it had said it could not.
            if before is None or (before == sha256 and open_run.awaits(node) and open_run.round == round):
                await self._count(open_run, round, node, put, shown, weight, spans)
                return
            if before != sha256:
                await self._store.drop(put)
        if before != sha256:
            raise Conflict(
                f"This node has sent another contribution to round {round} of run {run} before.",
                hint="The first one counts. The node discards the second when it asks for work.",
            )

    def _enter(self, connection: Any, arrived: Sequence[records.Arrived]) -> list[str | Exception | None]:
        """Enter contributions to rounds that are open."""
        closed = {key: records.is_closed(connection, *key) for key in {(each.run, each.round) for each in arrived}}
        in_time = [each for each in arrived if not closed[each.run, each.round]]
        before = iter(records.insert_contributions(connection, in_time))
        for each in in_time:
            self._store.announce(connection, "contribution", each.run, each.round, each.node)
        return [_closed(each.run, each.round) if closed[each.run, each.round] else next(before) for each in arrived]

    async def _count_late(
        self, run: OpenRun, node: str, put: Put, shown: bytes | int, weight: float, spans: Spans, damping: float
    ) -> None:
        """Add a contribution to the sum of the round that is open, and ask others in the place of its node."""
        cohort = asynchronous.refilled(run, self._rounds.cohorts.population(run), node)
        more, run.cohort = cohort != list(run.cohort), tuple(cohort)
        await self._count(run, run.round, node, put, shown, weight, spans, damping)
        if more and not run.closing:
            await self._rounds.extend(run, cohort, run.deadline)

    async def _count(
        self,
        run: OpenRun,
        round: int,
        node: str,
        put: Put,
        shown: bytes | int,
        weight: float,
        spans: Spans,
        damping: float = 1.0,
    ) -> None:
        """Add a contribution that is in the store to the sum of its round, if this coordinator makes that sum."""
        if run.state == "stopped":
            raise _closed(run.id, round)
        if run.round != round or run.closing or run.tally is None or node in run.received:
            return  # who closes the round finds it there, or has found it
        if not self._lease.held:
            run.received[node] = put.sha256
            self._heard(run, node, put)
            return
        total = run.tally.sum
        received, weights = run.received, run.weights
        received[node], weights[node] = put.sha256, weight
        try:
            await run.folding.acquire()
        except asyncio.CancelledError:
            # Stored, and not in the sum: who closes the round finds it there.
            del received[node], weights[node]
            raise
        try:
            if run.tally is None or run.tally.sum is not total:
                return  # the round was opened anew from the store, where this is
            if not run.is_heavy(shown):
                fold(shown, total, weight, spans, damping)
            else:
                try:
                    await _to_the_end(lambda: fold(shown, total, weight, spans, damping))
                except OSError as error:
                    # The sum is now of nobody knows what, and what it should be made of cannot be read.
                    with contextlib.suppress(Superseded):
                        await self._rounds.fail(run, _unreadable(error))
                    raise _unreadable(error) from error
        finally:
            run.folding.release()
        self._heard(run, node, put)
        self._rounds.consider(run)

    def _heard(self, run: OpenRun, node: str, put: Put) -> None:
        self._tell(Event("contribution.received", {"run": run.id, "round": run.round, "node": node, "bytes": put.length}))


async def _to_the_end(work: Callable[[], None]) -> None:
    """Do it in a thread. Who is cancelled waits for it all the same: nobody else may touch the sum meanwhile."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        working.result()
        raise


def _unreadable(error: OSError) -> StoreError:
    return StoreError(
        f"A contribution that was stored cannot be read: {error.strerror or error}.", hint="Look at the coordinator's disk."
    )


def _closed(run: str, round: int) -> Late:
    return Late(f"Round {round} of run {run} closed meanwhile.", hint="Nothing is wrong; ask for work again.")
