"""Rounds open, wait and close: in one transaction, whose contributions counted, the new states, and who is asked next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from freehold.coordinator import asynchronous
from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerCode, ServerStates
from freehold.coordinator.run import OpenRun, check, fold
from freehold.coordinator.schedules import Schedules
from freehold.coordinator.store import Put, Store, explained
from freehold.drawing import draw_cohort
from freehold.errors import CoordinatorError, FreeholdError, ServerCodeFailed, StoreError
from freehold.events import Event, Listener, silent
from freehold.wire.local import close
from freehold.wire.messages import Blob

OPEN_RUNS = 2
"""Runs of a study that are open at once: while one closes, the nodes work on the other."""

RETRY_S = 1.0
"""Between two attempts to write to a store that is full or away."""

T = TypeVar("T")


class Rounds:
    """The runs that are not over, and their open rounds. Methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        code: ServerCode,
        nodes: Callable[[str, bool], Sequence[str]],
        wake: Callable[[Sequence[str] | None], None],
        *,
        clock: Callable[[], float] = time.time,
        tell: Listener = silent,
    ) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted. `wake(nodes)` has polls answered; None: all."""
        self._store, self._code, self._nodes, self._wake, self._clock, self._tell = store, code, nodes, wake, clock, tell
        self.runs: dict[str, OpenRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._child = asyncio.Lock()
        self._closing = False
        self.schedules = Schedules(store, clock, tell, spawn=self._spawn, later=self._later, advance=self.advance)
        self._stopped = asyncio.Event()

    async def ask(self, question: Callable[[], T]) -> T:
        """Put a question to the child that runs algorithm code, one at a time."""
        async with self._child:
            return await asyncio.to_thread(question)

    async def advance(self) -> None:
        """Open runs that wait, as long as fewer than OPEN_RUNS of their study are open and enough nodes are there."""
        if self._closing:
            return
        for study in dict.fromkeys(run.study for run in self.runs.values()):
            own = [run for run in self.runs.values() if run.study == study]
            self.schedules.look(own)
            free = OPEN_RUNS - sum(run.state in ("training", "measuring") for run in own)
            for run in [r for r in own if r.state == "waiting"][: max(free, 0)]:
                if len(self.population(run)) < run.plan.round.least_nodes or run.closing:
                    continue
                run.closing = True  # nobody else begins it
                self._spawn(run, lambda run=run: self._begin(run))  # type: ignore[misc]
            for run in own:
                if run.state == "training" and not run.cohort and not run.closing and self.population(run):
                    self._spawn(run, lambda run=run: self._ask_anew(run))  # type: ignore[misc]

    async def _ask_anew(self, run: OpenRun) -> None:
        """Open a round once more that nobody is left in, now that there is somebody."""
        if run.cohort or run.received or run.closing:
            return  # another node was faster
        cohort, population = self._draw(run, run.round)
        run.open(run.round, tuple(cohort), population, self._clock() + run.plan.round.deadline_s)
        await self.extend(run, cohort, run.deadline)

    def _draw(self, run: OpenRun, round: int) -> tuple[list[str], int]:
        """Whom to ask in a round, everybody where it measures; and of how many."""
        population = self.population(run)
        if run.buffer is not None and run.plan.training.trains(round):
            return asynchronous.draw(run, run.buffer, round, population), len(population)
        asked = run.plan.round.cohort if run.plan.training.trains(round) else None
        size = min(asked or len(population), len(population))
        return draw_cohort(population, size, seed=run.run.seed, index=round) if population else [], len(population)

    async def _begin(self, run: OpenRun) -> None:
        first = 0 if run.server is None else run.round + 1
        if run.doubtful and self._kept(run, first):
            return
        if first:  # another cycle, from the states where they are
            await self._next_round(run, first, None, counted={}, weight=0.0)
            return
        plan = run.plan_blob.body or self._store.blob_bytes(run.plan_blob.sha256)
        states = await self._ask(run, lambda: self._code.begin(plan, run.run.number))
        if states is not None:
            await self._next_round(run, 0, states, counted={}, weight=0.0)

    def population(self, run: OpenRun) -> list[str]:
        """Who may be asked, sorted."""
        return list(self._nodes(run.plan.task.name, run.plan.clients == "devices"))

    def consider(self, run: OpenRun) -> None:
        """Close the round if everybody was heard, or at the deadline if enough were."""
        if self._closing or run.closing or run.state not in ("training", "measuring"):
            return
        now = self._clock()
        if (run.state == "measuring" or run.enough) and (run.complete or now >= run.deadline):
            run.closing = True
            self._spawn(run, lambda: self._close(run))
        elif now >= run.deadline:
            self._tell(Event("round.short", {"run": run.id, "round": run.round, "heard": len(run.received)}))
            self._spawn(run, lambda: self.extend(run, self._once_more(run), self._clock() + run.plan.round.deadline_s))
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
        await self._store.write(
            lambda c: records.extend(c, run=run.id, round=round_, cohort=cohort, population=population, deadline=deadline),
            "coordinator.extend",
        )
        self.consider(run)
        self._wake(cohort)

    def _once_more(self, run: OpenRun) -> list[str]:
        """Whom to ask in a round that is short of its quorum: also those that declined, and others as far as there is room."""
        population = self.population(run)
        if run.buffer is not None:
            return asynchronous.once_more(run, population)
        size = min(run.capacity, len(population))
        drawn = draw_cohort(population, size, seed=run.run.seed, index=run.round) if size else []
        others = [node for node in drawn if node not in run.cohort and node not in run.received]
        room = run.capacity - len({*run.cohort, *run.received})
        return sorted([*run.cohort, *others[: max(room, 0)]])

    async def _close(self, run: OpenRun) -> None:
        if run.state == "measuring":
            await self._finish(run)
            return
        if run.doubtful and self._kept(run, run.round + 1):
            return
        assert run.tally is not None and run.server is not None
        counted, weight = dict(run.received), sum(run.weights[n] for n in sorted(run.received))
        async with run.folding:
            plan = run.plan_blob.body or self._store.blob_bytes(run.plan_blob.sha256)
            # Descriptors of this step's own: the study may be stopped, and its tally be gone, before the child is asked.
            server, tally = self._store.open_blob(run.server), os.dup(run.tally.fd)

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
        if states is not None:
            await self._next_round(run, run.round + 1, states, counted=counted, weight=weight)

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
            running = records.is_running(connection, run.study)
            if running:
                records.end_study(connection, run.study, state="failed", now=now, reason=reason)
            return running

        if not await self._store.write(end, "coordinator.study_ended"):
            return
        self.forget(run.study)
        self._tell(Event("study.failed", {"study": run.study, "run": run.id, "code": error.code}))

    async def _next_round(
        self, run: OpenRun, round: int, states: ServerStates | None, *, counted: Mapping[str, str], weight: float
    ) -> None:
        """Open a round, and close the one before; without states, that one measured and is closed."""
        server, shared = (None, None) if states is None else await self._put(run, round, states)
        cohort, population = self._draw(run, round)
        now = self._clock()
        deadline = now + run.plan.round.deadline_s
        state = "training" if run.plan.training.trains(round) else "measuring"

        def settle(connection: Any) -> list[Path] | None:
            if not records.is_running(connection, run.study):
                return None
            gone: list[str] = []
            released: list[Path] = []
            if round and states is not None:
                gone = records.close_round(connection, run=run.id, round=round - 1, counted=counted, weight=weight, now=now)
            if server is not None and shared is not None:
                self._store.insert_blob(connection, server)
                if shared is not server:
                    self._store.insert_blob(connection, shared)
                old = records.put_states(connection, run.id, server=server.sha256, shared=shared.sha256)
                released = self._store.release(connection, set(old) - {server.sha256, shared.sha256})
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
            return [self._store.folder / place for place in gone] + released

        files = await self._store.write(settle, "coordinator.round")
        if files is None:
            for put in filter(None, (server, shared)):
                await self._store.drop(put)
            return
        run.counted = dict(counted)
        if server is not None and shared is not None:
            run.server, run.shared = server.sha256, Blob(sha256=shared.sha256, length=shared.length, body=shared.body)
        run.open(round, tuple(cohort), population, deadline)
        if files:
            await asyncio.to_thread(_remove, files)
        self._opened(run)

    async def _put(self, run: OpenRun, round: int, states: ServerStates) -> tuple[Put, Put]:
        """The states before a round, safe; twice the same where nodes see all of it."""
        try:
            server = await self._store.put(states.server, name=run.place(round, "server"), point="coordinator.state")
            if states.shared is states.server:
                return server, server
            return server, await self._store.put(states.shared, name=run.place(round, "shared"), point="coordinator.state")
        finally:
            states.close()

    def _opened(self, run: OpenRun) -> None:
        """A round is open, and the one before it closed."""
        if run.round and run.plan.training.trains(run.round - 1):
            heard, population = len(run.counted), run.population
            self._tell(Event("round.closed", {"run": run.id, "round": run.round - 1, "heard": heard, "population": population}))
        self.consider(run)
        self._wake(run.cohort)

    def _kept(self, run: OpenRun, round: int) -> bool:
        """Whether the database has opened this round, though it had said that it could not; it is then open here too."""
        if self._store.read(lambda c: records.round_of(c, run.id, round)) is None:
            return False
        run.round = round
        self.restore(run)
        self._opened(run)
        return True

    def restore(self, run: OpenRun) -> None:
        """The open round as the store has it: states, who was asked, who was heard, and the sum of what they sent."""
        row = self._store.read(lambda c: records.round_of(c, run.id, run.round))
        server, shared = self._store.read(lambda c: records.states_of(c, run.id))
        assert row is not None
        state = run.state
        run.server, run.shared = server, self._store.blob(shared)
        run.open(run.round, tuple(filter(None, row.cohort.split(","))), row.population, row.deadline)
        if run.buffer is not None:
            run.buffer.asked = self._store.read(lambda c: records.cohorts_of(c, run.id, asynchronous.earlier(run)))
        before = self._store.read(lambda c: records.received(c, run.id, run.round - 1))
        run.counted = {each.node: each.sha256 for each in before if each.counted}
        if row.closed is not None:  # between two cycles
            run.state = state
            run.drop_tally()
            return
        if run.tally is None:
            run.received = dict.fromkeys(self._store.read(lambda c: records.measures_of(c, run.id, run.round)), "")
            return
        for each in self._store.read(lambda c: records.received(c, run.id, run.round)):
            body = each.body if each.body is not None else self._store.folder / each.place
            with explained():
                fold(body, run.tally.sum, each.weight, check(body, run, run.tally.sum, each.weight), run.damping(each.round))
            run.received[each.node], run.weights[each.node] = each.sha256, each.weight

    async def _finish(self, run: OpenRun) -> None:
        """A run is measured: it is over, or rests until the next cycle."""
        now = self._clock()
        rests = self.schedules.goes_on(run.study)

        def end(connection: Any) -> tuple[bool, bool]:
            running = records.is_running(connection, run.study)
            if running:
                records.close_round(connection, run=run.id, round=run.round, counted={}, weight=0.0, now=now)
                records.set_run_state(connection, run.id, "resting" if rests else "finished")
            last = records.nothing_open(connection, run.study)
            if running and last and not rests:
                records.end_study(connection, run.study, state="finished", now=now)
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
        self._closing = True
        self._stopped.set()
        for timer in self._timers.values():
            timer.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
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

    def _spawn(self, run: OpenRun, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._persist(run, work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _persist(self, run: OpenRun, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do a step of a run, again and again while the store cannot be written; what else it raises ends the study."""
        failed = False
        while True:
            try:
                await work()
                return
            except StoreError as error:
                run.doubtful = True
                self._tell(_failed(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), RETRY_S)
                if self._closing:
                    return
            except Exception as error:
                if failed:
                    raise
                failed = True
                self._tell(_failed(error))
                found = error if isinstance(error, FreeholdError) else CoordinatorError(f"({type(error).__name__})")
                work = partial(self.fail, run, found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(_failed(error))


def _failed(error: BaseException) -> Event:
    code = error.code if isinstance(error, FreeholdError) else 0
    return Event("coordinator.error", {"kind": type(error).__name__, "code": code})


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
