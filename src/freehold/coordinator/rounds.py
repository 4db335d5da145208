"""Rounds open, wait and close: in one transaction, whose contributions counted, the new states, and who is asked next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerCode, ServerStates
from freehold.coordinator.cohorts import Cohorts
from freehold.coordinator.lease import Lease, Superseded
from freehold.coordinator.restore import fold_stored, restore, store_states
from freehold.coordinator.run import OpenRun
from freehold.coordinator.schedules import Schedules
from freehold.coordinator.steps import Steps
from freehold.coordinator.store import Store
from freehold.errors import FreeholdError, ServerCodeFailed
from freehold.events import Event, Listener, silent
from freehold.wire.local import close
from freehold.wire.messages import Blob

OPEN_RUNS = 2
"""Runs of a study that are open at once: while one closes, the nodes work on the other."""

T = TypeVar("T")


class _Missed(Exception):
    """Another coordinator has taken a contribution to the round that is being closed."""


class Rounds:
    """The runs that are not over, and their open rounds. Methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        code: ServerCode,
        nodes: Callable[[str, bool], Sequence[str]],
        wake: Callable[[Sequence[str] | None], None],
        lease: Lease,
        *,
        clock: Callable[[], float] = time.time,
        tell: Listener = silent,
    ) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted. `wake(nodes)` has polls answered; None: all.

        Only who holds the lease opens and closes rounds.
        """
        self._lease = lease
        self._store, self._code, self._wake, self._clock, self._tell = store, code, wake, clock, tell
        self.cohorts = Cohorts(nodes)
        self.runs: dict[str, OpenRun] = {}
        self._steps = Steps(self.fail, tell)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._child = asyncio.Lock()
        self.schedules = Schedules(
            store, clock, tell, check=lease.check, spawn=self._steps.begin, later=self._later, advance=self.advance
        )

    async def ask(self, question: Callable[[], T]) -> T:
        """Put a question to the child that runs algorithm code, one at a time."""
        async with self._child:
            return await asyncio.to_thread(question)

    async def advance(self) -> None:
        """Open runs that wait, as long as fewer than OPEN_RUNS of their study are open and enough nodes are there."""
        if self._steps.closing or not self._lease.held:
            return
        for study in dict.fromkeys(run.study for run in self.runs.values()):
            own = [run for run in self.runs.values() if run.study == study]
            self.schedules.look(own)
            free = OPEN_RUNS - sum(run.state in ("training", "measuring") for run in own)
            for run in [r for r in own if r.state == "waiting"][: max(free, 0)]:
                if len(self.cohorts.population(run)) < run.plan.round.least_nodes or run.closing:
                    continue
                run.closing = True  # nobody else begins it
                self._steps.begin(run, lambda run=run: self._begin(run))  # type: ignore[misc]
            for run in own:
                if run.state == "training" and not run.cohort and not run.closing and self.cohorts.population(run):
                    self._steps.begin(run, lambda run=run: self._ask_anew(run))  # type: ignore[misc]

    async def _ask_anew(self, run: OpenRun) -> None:
        """Open a round once more that nobody is left in, now that there is somebody."""
        if run.holds() or run.closing:
            return  # another node was faster
        cohort, population = self.cohorts.draw(run, run.round)
        run.open(run.round, tuple(cohort), population, self._clock() + run.plan.round.deadline_s)
        await self.extend(run, cohort, run.deadline)

    async def _begin(self, run: OpenRun) -> None:
        first = 0 if run.server is None else run.round + 1
        if run.doubtful and await self._kept(run, first):
            return
        if first:  # another cycle, from the states where they are
            await self._next_round(run, first, None, counted={}, weight=0.0)
            return
        plan = run.plan_blob.body or self._store.blob_bytes(run.plan_blob.sha256)
        states = await self._ask(run, lambda: self._code.begin(plan, run.run.number))
        if states is not None:
            await self._next_round(run, 0, states, counted={}, weight=0.0)

    def consider(self, run: OpenRun) -> None:
        """Close the round if everybody was heard, or at the deadline if enough were."""
        if self._steps.closing or not self._lease.held or run.closing or run.state not in ("training", "measuring"):
            return
        now = self._clock()
        if (run.state == "measuring" or run.enough) and (run.complete or now >= run.deadline):
            run.closing = True
            self._steps.begin(run, lambda: self._close(run))
        elif now >= run.deadline:
            self._tell(Event("round.short", {"run": run.id, "round": run.round, "heard": len(run.received)}))
            self._steps.begin(
                run, lambda: self.extend(run, self.cohorts.once_more(run), self._clock() + run.plan.round.deadline_s)
            )
        else:
            self._later(run, run.deadline - now, lambda: self.consider(run))

    def _later(self, run: OpenRun, after_s: float, do: Callable[[], None]) -> None:
        if run.id in self._timers:
            self._timers[run.id].cancel()
        self._timers[run.id] = asyncio.get_running_loop().call_later(after_s, do)

    async def extend(self, run: OpenRun, cohort: Sequence[str], deadline: float) -> None:
        """Wait on, for fewer nodes or others."""
        # In memory first: two nodes may decline at once, and a cohort that a crash restores is only asked in vain.
        round_, population, run.cohort, run.deadline = run.round, run.population, tuple(cohort), deadline

        def write(connection: Any) -> None:
            self._lease.check(connection)
            records.extend(connection, run=run.id, round=round_, cohort=cohort, population=population, deadline=deadline)
            self._store.announce(connection, "cohort", run.id, round_)

        await self._store.write(write, "coordinator.extend")
        self.consider(run)
        self._wake(cohort)

    async def withdraw(self, run: OpenRun, node: str) -> None:
        """Wait no longer for a node that was asked."""
        round_, run.cohort = run.round, tuple(other for other in run.cohort if other != node)

        def write(connection: Any) -> None:
            records.withdraw(connection, run=run.id, round=round_, node=node)
            self._store.announce(connection, "cohort", run.id, round_)

        await self._store.write(write, "coordinator.extend")
        self.consider(run)

    async def leave_out(self, run: OpenRun) -> None:
        """Wait no longer for those that offer the data no longer."""
        for node in self.cohorts.withdrawn(run):
            if run.awaits(node):
                await self.withdraw(run, node)

    async def _close(self, run: OpenRun) -> None:
        if run.state == "measuring":
            await self._finish(run)
            return
        if run.doubtful and await self._kept(run, run.round + 1):
            return
        if run.received.keys() != run.weights.keys():
            await self.catch_up(run)
        while (updated := await self._updated(run)) is not None:
            states, counted, weight = updated
            with contextlib.suppress(_Missed):
                await self._next_round(run, run.round + 1, states, counted=counted, weight=weight)
                return
            await self.catch_up(run)

    async def _updated(self, run: OpenRun) -> tuple[ServerStates, dict[str, str], float] | None:
        """The states after the round, whose contributions are in them, and their weight; None if it is not to be closed now."""
        assert run.tally is not None and run.server is not None
        async with run.folding:
            plan = run.plan_blob.body or self._store.blob_bytes(run.plan_blob.sha256)
            # Descriptors of this step's own: the study may be stopped, and its tally be gone, before the child is asked.
            server = await self._store.opened(run.server)
            if run.tally is None or not run.closing:  # meanwhile stopped, or closed by a step that was under way before
                close([server])
                return None
            tally = os.dup(run.tally.fd)
            # Others may come to be stored, and known here, while the child is asked.
            counted, weight = {n: run.received[n] for n in run.weights}, sum(run.weights[n] for n in sorted(run.weights))

            def update() -> ServerStates:
                return self._code.close_round(
                    plan,
                    run.run.number,
                    round=run.round,
                    heard=len(counted),
                    population=run.population,
                    server=server,
                    tally=tally,
                )

            try:
                states = await self._ask(run, update)
            finally:
                close([server, tally])
        return None if states is None else (states, counted, weight)

    async def follow(self, run: OpenRun, node: str | None = None) -> None:
        """See who is asked and heard in the open round by now; `node`: no more than that this one has contributed."""
        if node is not None:
            await self.catch_up(run, node)
        elif run.state in ("training", "measuring"):
            row = self._store.read(lambda c: records.round_of(c, run.id, run.round))
            assert row is not None
            run.cohort, run.deadline = tuple(filter(None, row.cohort.split(","))), row.deadline
            run.received |= dict.fromkeys(self._store.read(lambda c: records.measures_of(c, run.id, run.round)), "")
            await self.catch_up(run)
            self._wake(run.cohort)
            await self.advance()
        self.consider(run)

    async def catch_up(self, run: OpenRun, node: str | None = None) -> None:
        """Hear what is stored of the open round, from all or from one node; who leads adds it to the sum. Raises StoreError."""
        known = None if node is None else [node]
        for each in self._store.read(lambda c: records.received(c, run.id, run.round, known)):
            if self._lease.held:
                await self.take(run, each)
            elif each.summed == run.round:
                run.received.setdefault(each.node, each.sha256)

    async def take(self, run: OpenRun, stored: records.Row) -> None:
        """Add a stored contribution to the sum of its round, once. Raises StoreError, and it is then not in the sum."""
        async with run.folding:
            # Looked at under the lock: the round may have closed, or been built anew, while this one waited.
            if run.tally is None or stored.summed != run.round or stored.node in run.weights:
                return
            weights, total = run.weights, run.tally.sum
            run.received[stored.node], weights[stored.node] = stored.sha256, stored.weight
            try:
                await asyncio.to_thread(fold_stored, self._store, run, total, stored)
            except BaseException:
                del weights[stored.node]
                raise
        self.consider(run)

    async def _ask(self, run: OpenRun, question: Callable[[], ServerStates]) -> ServerStates | None:
        try:
            return await self.ask(question)
        except ServerCodeFailed as error:
            await self.fail(run, error)
            return None

    async def fail(self, run: OpenRun, error: FreeholdError) -> None:
        """End the study of a run that cannot go on, unless it is over anyway."""
        now, reason = self._clock(), str(error)

        def end(connection: Any) -> bool:
            self._lease.check(connection)
            running = records.is_running(connection, run.study)
            if running:
                records.end_study(connection, run.study, state="failed", now=now, reason=reason)
                self._store.announce(connection, "study", run.study)
            return running

        if not await self._store.write(end, "coordinator.study_ended"):
            return
        self.forget(run.study)
        self._tell(Event("study.failed", {"study": run.study, "run": run.id, "code": error.code}))

    async def _next_round(
        self, run: OpenRun, round: int, states: ServerStates | None, *, counted: Mapping[str, str], weight: float
    ) -> None:
        """Open a round, and close the one before; without states, that one measured and is closed."""
        server, shared = None, None
        if states is not None:
            server, shared = await store_states(self._store, run, round, states, self._lease.epoch)
        cohort, population = self.cohorts.draw(run, round)
        now = self._clock()
        deadline = now + run.plan.round.deadline_s
        state = "training" if run.plan.training.trains(round) else "measuring"

        def settle(connection: Any) -> list[str] | None:
            self._lease.check(connection)
            if not records.is_running(connection, run.study):
                return None
            if records.place_of(connection, run.id) != ("training" if round and states else "waiting", max(round - 1, 0)):
                raise Superseded
            gone: list[str] = []
            if round and states is not None:
                if records.senders(connection, run.id, round - 1) - set(counted):
                    raise _Missed
                gone = records.close_round(connection, run=run.id, round=round - 1, counted=counted, weight=weight, now=now)
            if server is not None and shared is not None:
                gone += self._store.insert_blob(connection, server)
                if shared is not server:
                    gone += self._store.insert_blob(connection, shared)
                old = records.put_states(connection, run.id, server=server.sha256, shared=shared.sha256)
                gone += self._store.release(connection, set(old) - {server.sha256, shared.sha256})
            records.open_round(
                connection,
                run=run.id,
                round=round,
                cohort=cohort,
                population=population,
                now=now,
                deadline=deadline,
                state=state,
            )
            self._store.announce(connection, "round", run.id)
            return gone

        places = await self._store.write(settle, "coordinator.round")
        if places is None:
            for put in filter(None, (server, shared)):
                await self._store.drop(put)
            return
        run.counted = dict(counted)
        if server is not None and shared is not None:
            run.server, run.shared = server.sha256, Blob(sha256=shared.sha256, length=shared.length, body=shared.body)
        run.open(round, tuple(cohort), population, deadline)
        self._opened(run)
        await self._store.remove(places)

    def _opened(self, run: OpenRun) -> None:
        """A round is open, and the one before it closed."""
        if run.round and run.plan.training.trains(run.round - 1):
            heard, population = len(run.counted), run.population
            self._tell(Event("round.closed", {"run": run.id, "round": run.round - 1, "heard": heard, "population": population}))
        self.consider(run)
        if self.cohorts.withdrawn(run):  # meanwhile
            self._steps.begin(run, lambda: self.leave_out(run))
        self._wake(run.cohort)

    async def _kept(self, run: OpenRun, round: int) -> bool:
        """Whether the database has opened this round, though it had said that it could not; it is then open here too."""
        if self._store.read(lambda c: records.round_of(c, run.id, round)) is None:
            return False
        before, run.round = (run.round, run.state), round
        try:
            restore(self._store, run)
            await self.catch_up(run)
        except BaseException:
            (run.round, run.state), run.closing, run.doubtful = before, True, True  # the step is done again from here
            raise
        self._opened(run)
        return True

    async def _finish(self, run: OpenRun) -> None:
        """A run is measured: it is over, or rests until the next cycle."""
        now = self._clock()
        rests = self.schedules.goes_on(run.study)

        def end(connection: Any) -> tuple[bool, bool]:
            self._lease.check(connection)
            running = records.is_running(connection, run.study)
            if running:
                records.close_round(connection, run=run.id, round=run.round, counted={}, weight=0.0, now=now)
                records.set_run_state(connection, run.id, "resting" if rests else "finished")
            last = records.nothing_open(connection, run.study)
            if running and last and not rests:
                records.end_study(connection, run.study, state="finished", now=now)
            self._store.announce(connection, "study", run.study)
            return running, last

        running, last = await self._store.write(end, "coordinator.run_ended")
        # One that was kept although the store had said otherwise has ended its study, if it was the last.
        if not running and not run.doubtful:
            return
        cycle, fields = run.plan.training.cycle(run.round), {"study": run.study}
        if rests:
            run.state, run.closing = "resting", False
            self._tell(Event("run.rested", {**fields, "run": run.id, "cycle": cycle}))
        else:
            self.runs.pop(run.id, None)
            run.state = "finished"
            self._tell(Event("run.finished", {**fields, "run": run.id}))
        if last:
            self._tell(Event("cycle.finished", {**fields, "cycle": cycle}) if rests else Event("study.finished", {**fields}))
        await self.advance()
        self._wake(None)

    async def close(self) -> None:
        """Wait for what is being written; nothing new is begun."""
        for timer in self._timers.values():
            timer.cancel()
        await self._steps.close()
        for run in self.runs.values():
            run.drop_tally()

    def forget(self, study: str) -> None:
        """Drop all that is open of a study."""
        for run in [r for r in self.runs.values() if r.study == study]:
            del self.runs[run.id]
            run.state = "stopped"
            run.drop_tally()
            if run.id in self._timers:
                self._timers.pop(run.id).cancel()
        self._wake(None)
