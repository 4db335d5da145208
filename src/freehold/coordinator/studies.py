"""Studies under way: whom to ask, what they sent, when a round closes. Everything that a crash would lose is in the store first.

A node's contribution is entered in the store, then acknowledged, then added to the sum. A round closes in one transaction:
whose contributions counted, the new states, and who is asked next.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerCode
from freehold.coordinator.lease import Lease
from freehold.coordinator.rounds import Rounds
from freehold.coordinator.run import Entries, OpenRun, check, fold
from freehold.coordinator.signing import Admit, everyone
from freehold.coordinator.store import Put, Store, in_row
from freehold.errors import Conflict, Late, StoreError, StudyRefused, UnknownRun
from freehold.events import Event, Listener, silent
from freehold.plan import Plan, digest, parse, runs_of
from freehold.wire.local import close
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
    ) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted. `admit` refuses plans by their signature.

        No lease: there is no other coordinator.
        """
        self._lease = lease or Lease(store)
        self._admitted = admit
        self._store, self._code, self._clock, self._tell = store, code, clock, tell
        self._rounds = Rounds(store, code, nodes, self.wake, self._lease, clock=clock, tell=tell)
        self._runs = self._rounds.runs
        self._served: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._closing = False

    # Studies.

    async def start(self, text: str, signature: str | None = None, *, by: str = "operator") -> str:
        """Begin a study from a plan's text; its digest. Beginning it twice changes nothing. Raises StudyRefused and PlanError.

        `by` is remembered: a role and a name.
        """
        plan = parse(text)
        identity = digest(plan)
        self._admitted(identity, signature)
        await self._check(plan, text)
        put = in_row(text.encode())
        numbered = [(run.id, run.number) for run in runs_of(plan)]

        def insert(connection: Any) -> bool:
            self._store.insert_blob(connection, put)
            self._store.announce(connection, "study", identity)
            return records.insert_study(
                connection,
                digest=identity,
                name=plan.name,
                plan=put.sha256,
                signature=signature,
                now=self._clock(),
                runs_=numbered,
                by=by,
            )

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

        def end(connection: Any) -> None:
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
            self._take_up(study)
        for open_run in list(self._runs.values()):
            self._rounds.consider(open_run)
        await self._rounds.advance()

    async def changed(self, kind: str, words: Sequence[str]) -> None:
        """Follow what another coordinator has written. Raises StoreError."""
        if kind == "study":
            self._take_up(words[0])
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
                self._take_up(study)
        for run in list(self._runs.values()):
            await self._rounds.follow(run)
        await self._rounds.advance()

    def _take_up(self, identity: str) -> None:
        """The runs of a study as the store has them; none if it is over."""
        study, rows = self._store.read(lambda c: records.study_of(c, identity))
        if study.state != "running":
            self._rounds.forget(identity)
            return
        plan, blob = parse(self._store.blob_bytes(study.plan).decode()), self._store.blob(study.plan)
        numbered = {row.number: row for row in rows}
        for run in runs_of(plan):
            # The same object if there is one: somebody may be waiting to add to its sum.
            open_run = self._runs.get(run.id) or OpenRun(run=run, plan=plan, plan_blob=blob, study=identity)
            self._place(open_run, numbered[run.number].state, numbered[run.number].round)

    def _look_up(self, run: OpenRun) -> None:
        """A run as the store has it."""
        self._place(run, *self._store.read(lambda c: records.place_of(c, run.id)))

    def _place(self, run: OpenRun, state: str, round: int) -> None:
        if state in ("finished", "stopped"):
            self._runs.pop(run.id, None)
            return
        run.state, run.round = state, round  # type: ignore[assignment]
        if state in ("training", "measuring"):
            self._rounds.restore(run)
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
            if run is not None and run.state != "stopped" and each.round == run.round - 1:
                settled.append(Settled(run=each.run, round=each.round, counted=run.counted.get(node, "")))
            elif run is None or each.round < run.round:
                unknown.append((each.run, each.round))
        if unknown:
            found = self._store.read(lambda c: records.counted_of(c, node, unknown))
            settled += [Settled(run=r, round=i, counted=counted) for (r, i), counted in found.items() if counted is not None]
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
            return Measure(run=run.id, round=run.round, plan=run.plan_blob, shared=run.shared, left_s=left_s)
        return Train(
            run=run.id,
            round=run.round,
            cohort=len(run.cohort),
            population=run.population,
            plan=run.plan_blob,
            shared=run.shared,
            left_s=left_s,
        )

    def expects(self, node: str, run: str, round: int) -> OpenRun:
        """The run to which this node may now contribute; raises UnknownRun or Late."""
        found = self._runs.get(run)
        if found is None or not found.asks(node):
            raise UnknownRun(f"This node was not asked for run {run}.", hint="The study may be over; ask for work again.")
        if self._store.shared and round > found.round:
            self._look_up(found)  # another coordinator went on, and the node heard of it first
        if round != found.round or found.closing or found.state != "training":
            raise Late(
                f"Round {round} of run {run} is closed; the run is in round {found.round}.",
                hint="Nothing is wrong: the coordinator went on without this contribution.",
            )
        return found

    def shows(self, node: str, sha256: str) -> bool:
        """Whether these bytes belong to work that this node was asked for."""
        if self._store.shared and not any(run.shows(node, sha256) for run in self._runs.values()):
            for run in list(self._runs.values()):
                self._look_up(run)
        return any(run.shows(node, sha256) for run in self._runs.values())

    async def contribute(self, node: str, run: str, round: int, *, weight: float, sha256: str, body: bytes | Path) -> None:
        """Take a contribution: when this returns, it is in the store and will be counted, once.

        Raises UnknownRun, Late, Conflict, SpecMismatch, WeightRefused, TensorsMalformed or StoreError.
        """
        # A file will be moved, or sent to the bucket; its descriptor goes on to show what was checked.
        shown = body if isinstance(body, bytes) else os.open(body, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._contribute(node, run, round, weight=weight, sha256=sha256, body=body, shown=shown)
        finally:
            close([shown] if isinstance(shown, int) else [])

    async def _contribute(
        self, node: str, run: str, round: int, *, weight: float, sha256: str, body: bytes | Path, shown: bytes | int
    ) -> None:
        open_run = self.expects(node, run, round)
        before = open_run.received.get(node)
        if before is None:
            assert open_run.tally is not None
            if not open_run.is_heavy(shown):
                entries = check(shown, open_run, open_run.tally.sum, weight)
            else:
                entries = await asyncio.to_thread(check, shown, open_run, open_run.tally.sum, weight)
            whose = hashlib.sha256(node.encode()).hexdigest()[:8]
            name = open_run.place(round, f"{whose}.{sha256[:16]}")
            put = await self._store.put(body, name=name, point="coordinator.contribution", sha256=sha256)
            now = self._clock()

            def insert(connection: Any) -> str | None:
                if records.is_closed(connection, run, round):
                    raise _closed(run, round)
                self._store.announce(connection, "contribution", run, round, node)
                return records.insert_contribution(connection, run=run, round=round, node=node, put=put, weight=weight, now=now)

            try:
                before = await self._store.write(insert, "coordinator.contribution")
            except Late:
                await self._store.drop(put)
                raise
            # There and not yet in the sum: the database kept what it had said it could not.
            if before is None or (before == sha256 and open_run.awaits(node) and open_run.round == round):
                await self._count(open_run, round, node, put, shown, weight, entries)
                return
            if before != sha256:
                await self._store.drop(put)
        if before != sha256:
            raise Conflict(
                f"This node has sent another contribution to round {round} of run {run} before.",
                hint="The first one counts. The node discards the second when it asks for work.",
            )

    async def _count(
        self, run: OpenRun, round: int, node: str, put: Put, shown: bytes | int, weight: float, entries: Entries
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
        run.received[node], run.weights[node] = put.sha256, weight
        async with run.folding:
            if not run.is_heavy(shown):
                fold(shown, total, weight, entries)
            else:
                try:
                    await asyncio.to_thread(fold, shown, total, weight, entries)
                except OSError as error:
                    # The sum is now of nobody knows what, and what it should be made of cannot be read.
                    await self._rounds.fail(run, _unreadable(error))
                    raise _unreadable(error) from error
        self._heard(run, node, put)
        self._rounds.consider(run)

    def _heard(self, run: OpenRun, node: str, put: Put) -> None:
        self._tell(Event("contribution.received", {"run": run.id, "round": run.round, "node": node, "bytes": put.length}))

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
            self._tell(Event("work.declined", {"run": run.id, "round": run.round, "node": node, "code": message.code}))
            if run.state == "training":
                await self._rounds.withdraw(run, node)
                return
        round_ = message.round
        body = msgspec.json.encode(message).decode()

        def write(connection: Any) -> None:
            records.put_measures(connection, run=run.id, round=round_, node=node, body=body)
            self._store.announce(connection, "measures", run.id, round_, node)

        await self._store.write(write, "coordinator.measures")
        if run.awaits(node) and run.round == round_:
            run.received[node] = ""
            self._rounds.consider(run)

    async def gone(self, node: str) -> None:
        """A node has left: open rounds no longer wait for it."""
        for run in list(self._runs.values()):
            if run.awaits(node):
                await self._rounds.withdraw(run, node)

    async def advance(self) -> None:
        """A node is new: runs that waited for it may open."""
        await self._rounds.advance()

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


def _unreadable(error: OSError) -> StoreError:
    return StoreError(
        f"A contribution that was stored cannot be read: {error.strerror or error}.", hint="Look at the coordinator's disk."
    )


def _closed(run: str, round: int) -> Late:
    return Late(f"Round {round} of run {run} closed meanwhile.", hint="Nothing is wrong; ask for work again.")
