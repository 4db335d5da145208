"""Studies under way: whom to ask, what they sent, when a round closes. Everything that a crash would lose is in the store first.

A node's contribution is entered in the store, then acknowledged, then added to the sum. A round closes in one transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from freehold.coordinator import asynchronous
from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerCode
from freehold.coordinator.intake import Intake
from freehold.coordinator.lease import Lease
from freehold.coordinator.quotas import Quotas
from freehold.coordinator.restore import restore
from freehold.coordinator.rounds import Rounds
from freehold.coordinator.run import OpenRun
from freehold.coordinator.specification import check_bundle
from freehold.coordinator.store import Store, in_row
from freehold.errors import StudyRefused, UnknownRun
from freehold.events import Event, Listener, silent
from freehold.plan import Plan, digest, parse, runs_of
from freehold.signing import Admit, everyone
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
        lease: Lease | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted. `admit` refuses plans by their signature.

        No lease: there is no other coordinator.
        """
        self._lease = lease or Lease(store)
        self._admitted, self._quotas = admit, quotas or Quotas()
        self._store, self._code, self._clock, self._tell = store, code, clock, tell
        self._rounds = Rounds(store, code, nodes, self.wake, self._lease, clock=clock, tell=tell)
        self._runs = self._rounds.runs
        self._served: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._closing = False
        self.intake = Intake(store, self._rounds, self._lease, self._look_up, lambda: self._closing, clock=clock, tell=tell)

    # Studies.

    async def start(
        self,
        text: str,
        signature: str | None = None,
        *,
        bundle: bytes | None = None,
        by: str = "operator",
        every_s: float | None = None,
        times: int | None = None,
    ) -> str:
        """Begin a study from a plan's text; its digest. Beginning it twice changes nothing. Raises StudyRefused and PlanError.

        `by` is remembered: a role and a name. `every_s`: it trains and measures again as often, until it is stopped or has
        done so `times`.
        """
        plan = parse(text)
        identity = digest(plan)
        self._admitted(identity, signature)
        if plan.round.mode == "asynchronous" and self._store.shared:
            raise StudyRefused(
                "Asynchronous rounds are for a coordinator with a database of its own; this one may share its PostgreSQL.",
                hint='Run the study on a coordinator without --database, or say mode = "synchronous" in [round].',
            )
        check_bundle(plan, bundle)
        await self._check(plan, text, bundle)
        put = in_row(text.encode())
        code = None if bundle is None else in_row(bundle)
        numbered = [(run.id, run.number) for run in runs_of(plan)]

        def insert(connection: Any) -> bool:
            now = self._clock()
            self._store.insert_blob(connection, put)
            if code is not None:
                self._store.insert_blob(connection, code)
            self._store.announce(connection, "study", identity)
            new = records.insert_study(
                connection,
                digest=identity,
                name=plan.name,
                plan=put.sha256,
                signature=signature,
                now=now,
                runs_=numbered,
                by=by,
            )
            if new:
                self._quotas.check(connection, by, plan.task.bundle)
            if new and every_s is not None:
                records.insert_schedule(connection, identity, every_s=every_s, times=times, now=now)
            found = records.schedule_of(connection, identity)
            if (every_s, times) != ((found.every_s, found.times) if found else (None, None)):
                raise StudyRefused(
                    "This plan was started before, with another schedule or none.",
                    hint="Give the same --every and --times as then, or none as then; or give the plan another name.",
                )
            return new

        if await self._store.write(insert, "coordinator.study"):
            self._tell(Event("study.started", {"study": identity, "name": plan.name, "runs": len(numbered)}))
        if not any(run.study == identity for run in self._runs.values()):
            # Also a study that the database kept when it had said that it could not.
            await self._take_up(identity)
            await self._rounds.advance()
        return identity

    async def _check(self, plan: Plan, text: str, bundle: bytes | None) -> None:
        found = await self._rounds.ask(lambda: self._code.describe(text.encode(), bundle))
        said = [plan.contribution.tensors, *(companion.tensors for companion in plan.companions)]
        names = [plan.algorithm.name, *(companion.name for companion in plan.companions)]
        for name, tensors, expected in zip(names, said, found, strict=True):
            if set(tensors) != set(expected):
                raise StudyRefused(
                    f"The plan does not list what {name} sends: {len(tensors)} tensors instead of {len(expected)}, or others.",
                    hint="`freehold study spec PLAN` writes the list; then sign the plan.",
                )

    async def stop(self, identity: str, reason: str) -> None:
        """End a study; what is trained stays in the store and on the nodes. Raises StudyRefused for one that is over."""
        now = self._clock()

        def end(connection: Any) -> None:
            state = records.study_of(connection, identity)[0].state
            if state not in ("running", "stopped"):
                raise StudyRefused(f"The study is over: it has {state}.", hint="`freehold study show` has its report.")
            records.end_study(connection, identity, state="stopped", now=now, reason=reason)
            self._store.announce(connection, "study", identity)

        await self._store.write(end, "coordinator.study_ended")
        self._rounds.forget(identity)
        self._tell(Event("study.stopped", {"study": identity, "reason": reason}))

    async def recover(self) -> None:
        """Take up every study where the store says it is."""
        running = {study.digest: None for study in self._store.read(records.running)}
        for study in {run.study for run in self._runs.values()} - running.keys():
            self._rounds.forget(study)
        for study in running:
            await self._take_up(study)
        for open_run in list(self._runs.values()):
            self._rounds.consider(open_run)
        await self._rounds.advance()

    async def changed(self, kind: str, words: Sequence[str]) -> None:
        """Follow what another coordinator has written. Raises StoreError."""
        if kind == "study":
            known = self._lease.held and any(run.study == words[0] for run in self._runs.values())
            # Who leads knows best where the runs of a study are; of others, and of one that is over, it is told.
            if not known or not self._store.read(lambda c: records.is_running(c, words[0])):
                await self._take_up(words[0])
            await self._rounds.advance()
            return
        run = self._runs.get(words[0])
        if run is None:
            return  # its study is over, or will be heard of
        if kind == "round":
            self._look_up(run)
            self.wake(run.cohort)
        elif run.round == int(words[1]):
            await self._rounds.follow(run, words[2] if kind == "contribution" else None)

    async def catch_up(self) -> None:
        """Follow all that other coordinators may have written meanwhile. Raises StoreError."""
        if not self._lease.held:
            await self.recover()
            return
        known = {run.study for run in self._runs.values()}
        for study in known | {study.digest for study in self._store.read(records.running)}:
            if study not in known or not self._store.read(lambda c, s=study: records.is_running(c, s)):  # type: ignore[misc]
                await self._take_up(study)
        for run in list(self._runs.values()):
            await self._rounds.follow(run)
        await self._rounds.advance()

    async def _take_up(self, identity: str) -> None:
        """The runs of a study as the store has them; none if it is over."""
        study, rows = self._store.read(lambda c: records.study_of(c, identity))
        if study.state != "running":
            self._rounds.forget(identity)
            return
        plan, blob = parse(self._store.blob_bytes(study.plan).decode()), self._store.blob(study.plan)
        bundle = None if plan.task.bundle is None else self._store.blob(plan.task.bundle.removeprefix("sha256:"))
        numbered = {row.number: row for row in rows}
        for run in runs_of(plan):
            # The same object if there is one: somebody may be waiting to add to its sum.
            open_run = self._runs.get(run.id) or OpenRun(
                run=run, plan=plan, plan_blob=blob, bundle=bundle, study=identity, signature=study.signature
            )
            self._place(open_run, numbered[run.number].state, numbered[run.number].round)
            await self._rounds.catch_up(open_run)

    def _look_up(self, run: OpenRun) -> None:
        """A run as the store has it."""
        self._place(run, *self._store.read(lambda c: records.place_of(c, run.id)))

    def _place(self, run: OpenRun, state: str, round: int) -> None:
        if state in ("finished", "stopped"):
            self._runs.pop(run.id, None)
            return
        run.state, run.round = state, round  # type: ignore[assignment]
        if state in ("training", "measuring") or round:
            restore(self._store, run)
        if state in ("waiting", "resting"):
            run.closing = run.doubtful = False
        self._runs[run.id] = run

    # Nodes.

    async def work(
        self, node: str, pending: Sequence[Pending], wait_s: float, working: Pending | None = None
    ) -> tuple[list[Settled], Work | None]:
        """What became of pending rounds, and the next piece of work; waits up to `wait_s` seconds for either.

        `working`: what the node is still busy with, which comes first.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            settled, work = self._settled(node, pending), self._next(node, working)
            if settled or work is not None or loop.time() >= deadline or self._closing:
                return settled, work
            # A future and a timer: an asyncio.Event and wait_for would take 2 kB more for each node that waits.
            woken: asyncio.Future[None] = loop.create_future()
            timer = loop.call_at(deadline, _answer, woken)
            self._waiting[node].add(woken)
            try:
                await woken
            finally:
                timer.cancel()
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

    def _next(self, node: str, working: Pending | None) -> Work | None:
        """The work of the study that this node was least often asked for; in it, the run that came first."""
        ready = [run for run in self._runs.values() if run.awaits(node)]
        if not ready:
            return None
        served = self._served[node]
        run = min(ready, key=lambda r: (served[r.study], r.round, r.run.number))
        same = [r for r in ready if working is not None and (r.id, r.round) == (working.run, working.round)]
        if same:
            run = same[0]
        else:
            served[run.study] += 1
        assert run.shared is not None
        left_s = max(run.deadline - self._clock(), 0.0)
        if run.state == "measuring":
            return Measure(
                run=run.id,
                round=run.round,
                plan=run.plan_blob,
                signature=run.signature,
                bundle=run.bundle,
                shared=run.shared,
                left_s=left_s,
            )
        return Train(
            run=run.id,
            round=run.round,
            cohort=len(run.cohort) if run.buffer is None else run.quorum,
            population=run.population,
            plan=run.plan_blob,
            signature=run.signature,
            bundle=run.bundle,
            shared=run.shared,
            left_s=left_s,
        )

    async def measured(self, node: str, message: Measures | Declined) -> None:
        """Take what a node measured, or that it declined to train or measure."""
        run = self._runs.get(message.run)
        if run is None or not run.asks(node):
            raise UnknownRun(f"This node was not asked for run {message.run}.", hint="The study may be over.")
        if isinstance(message, Measures) and run.state != "measuring":
            raise UnknownRun(f"Run {run.id} is not to be measured yet.", hint=f"It is in round {run.round}; ask for work again.")
        if run.round != message.round or not run.awaits(node):
            return
        if isinstance(message, Declined):
            run.declined[node] = message.code
            self._tell(Event("work.declined", {"run": run.id, "round": run.round, "node": node, "code": message.code}))
            if run.state == "training":
                await self._rounds.withdraw(run, node)
                return
        answer = records.Answer(run.id, message.round, node, msgspec.json.encode(message).decode())
        await self._store.write_alike(self._enter, answer, "coordinator.measures")
        if run.awaits(node) and run.round == message.round:
            run.received[node] = ""
            self._rounds.consider(run)

    def _enter(self, connection: Any, answers: Sequence[records.Answer]) -> list[None]:
        records.put_measures(connection, answers)
        for each in answers:
            self._store.announce(connection, "measures", each.run, each.round, each.node)
        return [None] * len(answers)

    async def gone(self, node: str) -> None:
        """A node has left: open rounds no longer wait for it, and those that it was the last of ask others."""
        for run in list(self._runs.values()):
            if run.awaits(node):
                await self._rounds.withdraw(run, node)
        await self.advance()

    async def offered(self, node: str, lost: Collection[str]) -> None:
        """A node is new, or offers something else than before, and `lost` no longer: it rests, or is about to stop.

        Open rounds of training do not wait for it, and those that it was the last of ask others. Those that measure wait until
        their deadline, if it does not decline: without its measures a report is not whole.
        """
        for run in list(self._runs.values()):
            if run.state == "training" and run.plan.task.name in lost and run.awaits(node):
                await self._rounds.withdraw(run, node)
        await self.advance()

    async def advance(self) -> None:
        """A node is new: runs that waited for it may open."""
        await self._rounds.advance()

    async def leave_out(self) -> None:
        """Other coordinators may have heard that nodes offer something no longer."""
        for run in list(self._runs.values()):
            if self._lease.held and run.state == "training" and not run.closing:
                await self._rounds.leave_out(run)

    def wake(self, nodes: Sequence[str] | None) -> None:
        """Answer the polls of these nodes if there is something to say; None: of all."""
        for node in list(self._waiting) if nodes is None else nodes:
            for woken in self._waiting.get(node, ()):
                _answer(woken)

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


def _answer(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
