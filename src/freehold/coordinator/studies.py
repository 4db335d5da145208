"""Studies under way: whom to ask, what they sent, when a round closes. Everything that a crash would lose is in the store first.

A node's contribution is entered in the store, then acknowledged, then added to the sum. A round closes in one transaction:
whose contributions counted, the new states, and who is asked next.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from freehold.coordinator import asynchronous
from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerCode
from freehold.coordinator.rounds import Rounds
from freehold.coordinator.run import Entries, OpenRun, check, fold
from freehold.coordinator.signing import Admit, everyone
from freehold.coordinator.store import Put, Store
from freehold.errors import Conflict, Late, StoreError, StudyRefused, UnknownRun
from freehold.events import Event, Listener, silent
from freehold.plan import Plan, digest, parse, runs_of
from freehold.wire.messages import Declined, Measure, Measures, Pending, Settled, Train, Work


class Studies:
    """All studies under way on this coordinator. Methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        code: ServerCode,
        nodes: Callable[[str, bool], Sequence[str]],
        *,
        clock: Callable[[], float] = time.time,
        tell: Listener = silent,
        admit: Admit = everyone,
    ) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted. `admit` refuses plans by their signature."""
        self._admitted = admit
        self._store, self._code, self._clock, self._tell = store, code, clock, tell
        self._rounds = Rounds(store, code, nodes, self.wake, clock=clock, tell=tell)
        self._runs = self._rounds.runs
        self._served: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._closing = False

    # Studies.

    async def start(
        self, text: str, signature: str | None = None, *, every_s: float | None = None, times: int | None = None
    ) -> str:
        """Begin a study from a plan's text; its digest. Beginning it twice changes nothing. Raises StudyRefused and PlanError.

        `every_s`: it trains and measures again as often, until it is stopped or has done so `times`.
        """
        plan = parse(text)
        identity = digest(plan)
        self._admitted(identity, signature)
        await self._check(plan, text)
        name = f"{identity.removeprefix('sha256:')[:32]}.plan"
        put = await self._store.put(text.encode(), name=name, point="coordinator.plan")
        numbered = [(run.id, run.number) for run in runs_of(plan)]

        def insert(connection: Any) -> bool:
            sha256, now = self._store.insert_blob(connection, put), self._clock()
            new = records.insert_study(
                connection, digest=identity, name=plan.name, plan=sha256, signature=signature, now=now, runs_=numbered
            )
            if new and every_s is not None:
                records.insert_schedule(connection, identity, every_s=every_s, times=times, now=now)
            found = records.schedule_of(connection, identity)
            if (every_s, times) != ((found.every_s, found.times) if found else (None, None)):
                raise StudyRefused(
                    "This plan was started before, with another schedule or none.",
                    hint="Start it without --every and --times as then, or give the plan another name.",
                )
            return new

        if await self._store.write(insert, "coordinator.study"):
            self._tell(Event("study.started", {"study": identity, "name": plan.name, "runs": len(numbered)}))
        if not any(run.study == identity for run in self._runs.values()):
            # Also a study that the database kept when it had said that it could not.
            self._take_up(identity)
            await self._rounds.advance()
        return identity

    async def _check(self, plan: Plan, text: str) -> None:
        found = await self._rounds.ask(lambda: self._code.describe(text.encode()))
        said = [plan.contribution.tensors, *(companion.tensors for companion in plan.companions)]
        names = [plan.algorithm.name, *(companion.name for companion in plan.companions)]
        for name, tensors, expected in zip(names, said, found, strict=True):
            if set(tensors) != set(expected):
                raise StudyRefused(
                    f"The plan does not list what {name} sends: {len(tensors)} tensors instead of {len(expected)}, or others.",
                    hint="`freehold study spec PLAN` writes the list; then sign the plan.",
                )

    async def stop(self, identity: str, reason: str) -> None:
        """End a study; what is trained stays in the store and on the nodes."""
        now = self._clock()
        await self._store.write(
            lambda c: records.end_study(c, identity, state="stopped", now=now, reason=reason), "coordinator.study_ended"
        )
        self._rounds.forget(identity)
        self._tell(Event("study.stopped", {"study": identity, "reason": reason}))

    async def recover(self) -> None:
        """Take up every study where the store says it was."""
        for study in self._store.read(records.running):
            self._take_up(study.digest)
        for open_run in list(self._runs.values()):
            self._rounds.consider(open_run)
        await self._rounds.advance()

    def _take_up(self, identity: str) -> None:
        """The runs of a study as the store has them; none if it is over."""
        study, runs = self._store.read(lambda c: records.study_of(c, identity))
        if study.state != "running":
            return
        plan, blob = parse(self._store.blob_bytes(study.plan).decode()), self._store.blob(study.plan)
        rows = {row.number: row for row in runs}
        for run in runs_of(plan):
            row = rows[run.number]
            if row.state in ("finished", "stopped"):
                continue
            open_run = OpenRun(
                run=run,
                plan=plan,
                plan_blob=blob,
                study=identity,
                state=row.state,
                round=row.round,
            )
            if row.server is not None:
                self._rounds.restore(open_run)
            self._runs[run.id] = open_run

    # Nodes.

    async def work(self, node: str, pending: Sequence[Pending], wait_s: float) -> tuple[list[Settled], Work | None]:
        """What became of pending rounds, and the next piece of work; waits up to `wait_s` seconds for either."""
        woken = asyncio.Event()
        self._waiting[node].add(woken)
        try:
            deadline = asyncio.get_running_loop().time() + wait_s
            while True:
                woken.clear()
                settled, work = self._settled(node, pending), self._next(node)
                left = deadline - asyncio.get_running_loop().time()
                if settled or work is not None or left <= 0 or self._closing:
                    return settled, work
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), left)
        finally:
            self._waiting[node].discard(woken)

    def _settled(self, node: str, pending: Sequence[Pending]) -> list[Settled]:
        settled, unknown = [], []
        for each in pending:
            run = self._runs.get(each.run)
            if run is not None and run.buffer is not None:
                found = asynchronous.settled(self._store, run, node, each.round)
                settled += [] if found is None else [found]
            elif run is not None and run.state != "stopped" and each.round == run.round - 1:
                settled.append(Settled(run=each.run, round=each.round, counted=run.counted.get(node, "")))
            elif run is None or each.round < run.round:
                unknown.append((each.run, each.round))
        if unknown:
            told = self._store.read(lambda c: records.counted_of(c, node, unknown))
            settled += [Settled(run=r, round=i, counted=counted) for (r, i), counted in told.items() if counted is not None]
        return settled

    def _next(self, node: str) -> Work | None:
        """The work of the study that this node was least often asked for; in it, the run that came first."""
        ready = [run for run in self._runs.values() if run.awaits(node)]
        if not ready:
            return None
        served = self._served[node]
        run = min(ready, key=lambda r: (served[r.study], r.round, r.run.number))
        served[run.study] += 1
        assert run.shared is not None
        if run.state == "measuring":
            return Measure(run=run.id, round=run.round, plan=run.plan_blob, shared=run.shared)
        return Train(
            run=run.id,
            round=run.round,
            cohort=len(run.cohort) if run.buffer is None else run.quorum,
            population=run.population,
            plan=run.plan_blob,
            shared=run.shared,
            deadline=run.deadline,
        )

    def expects(self, node: str, run: str, round: int) -> OpenRun:
        """The run to which this node may now contribute; raises UnknownRun or Late."""
        found = self._runs.get(run)
        if found is not None and found.buffer is not None:
            asynchronous.check_asked(found, node, round)
            return found
        if found is None or node not in found.cohort:
            raise UnknownRun(f"This node was not asked for run {run}.", hint="The study may be over; ask for work again.")
        if round != found.round or found.closing or found.state != "training":
            raise Late(
                f"Round {round} of run {run} is closed; the run is in round {found.round}.",
                hint="Nothing is wrong: the coordinator went on without this contribution.",
            )
        return found

    def shows(self, node: str, sha256: str) -> bool:
        """Whether these bytes belong to work that this node was asked for."""
        return any(
            node in run.cohort and sha256 in (run.plan_blob.sha256, run.shared.sha256 if run.shared else "")
            for run in self._runs.values()
        )

    async def contribute(self, node: str, run: str, round: int, *, weight: float, sha256: str, body: bytes | Path) -> None:
        """Take a contribution: when this returns, it is in the store and will be counted, once.

        Raises UnknownRun, Late, Conflict, SpecMismatch, TensorsMalformed or StoreError.
        """
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
                    now=self._clock,
                    closing=lambda: self._closing,
                    count=self._count_late,
                )
            finally:
                self._rounds.consider(open_run)
            return
        before = open_run.received.get(node)
        if before is None:
            assert open_run.tally is not None
            if isinstance(body, bytes):
                entries = check(body, open_run, open_run.tally.sum, weight)
            else:
                entries = await asyncio.to_thread(check, body, open_run, open_run.tally.sum, weight)
            whose = hashlib.sha256(node.encode()).hexdigest()[:8]
            name = open_run.place(round, f"{whose}.{sha256[:16]}")
            put = await self._store.put(body, name=name, point="coordinator.contribution", sha256=sha256)
            now = self._clock()

            def insert(connection: Any) -> str | None:
                if records.is_closed(connection, run, round):
                    raise _closed(run, round)
                return records.insert_contribution(connection, run=run, round=round, node=node, put=put, weight=weight, now=now)

            try:
                before = await self._store.write(insert, "coordinator.contribution")
            except Late:
                await self._store.drop(put)
                raise
            # There and not yet in the sum: the database kept what it had said it could not.
            if before is None or (before == sha256 and open_run.awaits(node) and open_run.round == round):
                await self._count(open_run, round, node, put, weight, entries)
                return
            if before != sha256:
                await self._store.drop(put)
        if before != sha256:
            raise Conflict(
                f"This node has sent another contribution to round {round} of run {run} before.",
                hint="The first one counts. The node discards the second when it asks for work.",
            )

    async def _count_late(self, run: OpenRun, node: str, put: Put, weight: float, entries: Entries, damping: float) -> None:
        """Add a contribution to the sum of the round that is open, and ask others in the place of its node."""
        cohort = asynchronous.refilled(run, self._rounds.population(run), node)
        more, run.cohort = cohort != list(run.cohort), tuple(cohort)
        await self._count(run, run.round, node, put, weight, entries, damping)
        if more and not run.closing:
            await self._rounds.extend(run, cohort, run.deadline)

    async def _count(
        self, run: OpenRun, round: int, node: str, put: Put, weight: float, entries: Entries, damping: float = 1.0
    ) -> None:
        """Add a contribution that is in the store to the sum of its round."""
        if run.round != round or run.closing or run.tally is None:
            raise _closed(run.id, round)
        total = run.tally.sum
        run.received[node], run.weights[node] = put.sha256, weight
        async with run.folding:
            if put.body is not None:
                fold(put.body, total, weight, entries, damping)
            elif put.place is not None:
                try:
                    await asyncio.to_thread(fold, self._store.folder / put.place, total, weight, entries, damping)
                except OSError as error:
                    # The sum is now of nobody knows what, and what it should be made of cannot be read.
                    await self._rounds.fail(run, _unreadable(error))
                    raise _unreadable(error) from error
        self._tell(Event("contribution.received", {"run": run.id, "round": round, "node": node, "bytes": put.length}))
        self._rounds.consider(run)

    async def measured(self, node: str, message: Measures | Declined) -> None:
        """Take what a node measured, or that it declined to train or measure."""
        run = self._runs.get(message.run)
        if run is None or node not in run.cohort:
            raise UnknownRun(f"This node was not asked for run {message.run}.", hint="The study may be over.")
        if isinstance(message, Measures) and run.state != "measuring":
            raise UnknownRun(f"Run {run.id} is not to be measured yet.", hint=f"It is in round {run.round}; ask for work again.")
        if run.round != message.round or not run.awaits(node):
            return
        if isinstance(message, Declined):
            self._tell(Event("work.declined", {"run": run.id, "round": run.round, "node": node, "code": message.code}))
            if run.state == "training":
                await self._rounds.extend(run, [n for n in run.cohort if n != node], run.deadline)
                return
        round_ = message.round
        body = msgspec.json.encode(message).decode()
        await self._store.write(
            lambda c: records.put_measures(c, run=run.id, round=message.round, node=node, body=body), "coordinator.measures"
        )
        if run.awaits(node) and run.round == round_:
            run.received[node] = ""
            self._rounds.consider(run)

    async def gone(self, node: str) -> None:
        """A node has left: open rounds no longer wait for it."""
        for run in list(self._runs.values()):
            if run.awaits(node):
                await self._rounds.extend(run, [n for n in run.cohort if n != node], run.deadline)

    async def advance(self) -> None:
        """A node is new: runs that waited for it may open."""
        await self._rounds.advance()

    def wake(self, nodes: Sequence[str] | None) -> None:
        """Answer the polls of these nodes if there is something to say; None: of all."""
        for node in list(self._waiting) if nodes is None else nodes:
            for event in self._waiting.get(node, ()):
                event.set()

    @property
    def closing(self) -> bool:
        """Whether nothing new is begun."""
        return self._closing

    def wake_all(self) -> None:
        """Answer every poll now, with nothing if there is nothing."""
        self._closing = True
        for run in self._runs.values():
            if run.buffer is not None:
                run.buffer.notify()
        self.wake(None)

    async def close(self) -> None:
        """Wait for what is being written; nothing new is begun."""
        self.wake_all()
        await self._rounds.close()

    def open_runs(self) -> list[OpenRun]:
        """Runs that are not over, for status pages."""
        return list(self._runs.values())


def _unreadable(error: OSError) -> StoreError:
    return StoreError(
        f"A contribution that was stored cannot be read: {error.strerror or error}.", hint="Look at the coordinator's disk."
    )


def _closed(run: str, round: int) -> Late:
    return Late(f"Round {round} of run {run} closed meanwhile.", hint="Nothing is wrong; ask for work again.")
