"""The guard: the only door out of a node. No network; it holds the vault, and starts a trainer for each study.

What the trainer answers is believed in nothing: it must be sealed, be exactly what the plan's spec lists, and finite.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from freehold.errors import DataUnfit, FreeholdError, NodeError, PeerGone
from freehold.events import Event
from freehold.failpoints import failpoint
from freehold.node import vaultkey
from freehold.node.admission import Admission
from freehold.node.budget import Limits
from freehold.node.bundles import Bundles, check_guarded
from freehold.node.checkpoints import roots_of
from freehold.node.claims import Claims, whole
from freehold.node.counted import checked_records
from freehold.node.door import Door, Piece
from freehold.node.errands import (
    Busy,
    Erased,
    Forget,
    FromGuard,
    Hello,
    MeasureErrand,
    Outgoing,
    OutgoingMeasures,
    OutgoingMessage,
    PendingRounds,
    Quit,
    Refused,
    Settle,
    ToGuard,
    TrainErrand,
)
from freehold.node.jobs import Failed, FromTrainer, MeasuredModel, MeasureJob, Open, Opened, Trained, TrainJob
from freehold.node.measures import known_choice, may_leave, measures_body
from freehold.node.notes import note
from freehold.node.release import released
from freehold.node.retention import erase, expire
from freehold.node.sandboxed import Trainers, trainers_of, unjailed
from freehold.node.tpm import Tpm
from freehold.node.vault import Vault
from freehold.node.warm import MOST_WORDS, TRAINING_LIMIT_S, WarmStudy
from freehold.plan import Plan, Run, digest, parse
from freehold.policy import DataRules
from freehold.wire.local import Channel, Mapped, Memory, channel_from, close, read, sealed
from freehold.wire.messages import LedgerHead
from freehold.wire.packing import packed
from freehold.wire.process import Child, Spawn, spawn

TRAINER = "freehold.node.trainer"

MOST_STUDIES = 64
"""Plans that are known at once, beside those that were trained."""


class Guard:
    """Answers the agent's errands."""

    def __init__(self, hello: Hello, *, spawn: Spawn = spawn, trainers: Trainers | None = None) -> None:
        """`trainers`: in production in a sandbox; else `spawn` starts them."""
        found = trainers or unjailed(spawn)
        self._hello, self._start_trainer, self._level = hello, found.start, found.level
        self._bundles = Bundles(Path(hello.state))
        rules = Path(hello.policy) if hello.policy else None
        self._door = Door(Path(hello.state), node=hello.node, peer=hello.coordinator, vault=lambda: self._vault.name())
        tpm = Tpm(hello.tpm) if hello.tpm else None
        self._vault = Vault(Path(hello.state), self._door.anchor, credentials=vaultkey.credentials(), tpm=tpm)
        self._admission = Admission(
            Path(hello.state),
            rules,
            datasets=hello.datasets,
            sandbox=found.level,
            bounded=found.bounded,
            note=self._door.note,
        )
        self._events: list[Event] = []
        self._studies: dict[str, WarmStudy] = {}
        self._training: dict[str, int] = {}  # digest of a plan -> training examples here, in the smallest split

    def answer(self, errand: ToGuard, fds: Sequence[int]) -> tuple[FromGuard, list[int]]:
        """The answer, and the sealed memory that goes with it."""
        if isinstance(errand, Settle):
            for settled in errand.settled:
                self._vault.settle(settled)
            if errand.witnessed is not None:
                self._events += self._door.witnessed(errand.witnessed, roots_of(Path(self._hello.state)))
            return PendingRounds(pending=self._vault.pending()), []
        if isinstance(errand, Quit):
            for each in self._studies.values():
                each.quit()
            self._door.give_up()
            return PendingRounds(pending=self._vault.pending()), []
        if isinstance(errand, Forget):
            return Erased(states=erase(self._vault, self._door)), []
        if isinstance(errand, Hello):
            raise NodeError("The guard was told twice whose it is.", hint="This is a defect; please report it.")
        study, run = self._known(errand.run, fds[0])
        self._bundles.take(study.plan, fds[2:])
        rules = self._admission.ask(study.plan, run, errand, refused=study.quit, renewed=study.trainer.end)
        check_guarded(study.plan, self._level)
        return (
            self._train(study, run, errand, fds[1], rules)
            if isinstance(errand, TrainErrand)
            else self._measure(study, run, errand, fds[1], rules)
        )

    def _train(
        self, study: WarmStudy, run: Run, errand: TrainErrand, shared: int, rules: DataRules
    ) -> tuple[FromGuard, list[int]]:
        personal = self._vault.committed(run.id, digest(study.plan))
        job = TrainJob(number=run.number, round=errand.round, cohort=errand.cohort, population=errand.population)
        try:
            study.start()
            piece = self._piece(study, errand, rules)
            self._door.begin(piece)
            found = study.ask(job, [shared] if personal is None else [shared, personal], errand)
        except BaseException:
            self._door.give_up()
            raise
        finally:
            close([] if personal is None else [personal])
        if found is None:
            return Busy(), []
        reply, got = found
        try:
            if not isinstance(reply, Trained) or len(got) != 2 or not whole(got):
                raise study.nonsense()
            self._check_charged(study, piece)
            study.claims.weight(run.id, study.plan.training, reply.weight)
            if (out := released(got[0], run.contribution, study.plan.privacy)) != got[0]:
                got.insert(0, out)
            if run.contribution.compression == "zstd":
                with Mapped(got[0]) as view:
                    got.insert(0, _packed(view))
            with Mapped(got[0]) as view:
                sha256, length = hashlib.sha256(view).hexdigest(), len(view)
            self._vault.put_pending(run.id, errand.round, sha256, got[-1], dataset=study.plan.task.name, plan=digest(study.plan))
            self._door.send("contribution", piece, sha256=sha256, length=length)
            self._admission.left(study.plan.task.name, f"{errand.run}:{errand.round}")
        except BaseException:
            self._door.give_up()
            close(got[:1])
            raise
        finally:
            close(got[1:])
        compression = run.contribution.compression
        return Outgoing(weight=reply.weight, compression=compression, sha256=sha256, length=length), got[:1]

    def _measure(
        self, study: WarmStudy, run: Run, errand: MeasureErrand, shared: int, rules: DataRules
    ) -> tuple[FromGuard, list[int]]:
        personal = self._vault.committed(run.id, digest(study.plan))
        job = MeasureJob(number=run.number, round=errand.round)
        try:
            answered = study.ask(job, [shared] if personal is None else [shared, personal], errand)
        finally:
            close([] if personal is None else [personal])
        if answered is None:
            return Busy(), []
        reply, got = answered
        close(got)
        if not isinstance(reply, MeasuredModel):
            raise study.nonsense()
        found = OutgoingMeasures(splits=may_leave(reply.splits), alone=may_leave(reply.alone), served=known_choice(reply.served))
        study.claims.examples(run.id, "run", reply.splits)
        study.claims.examples(run.id, "alone", reply.alone)
        told = {"algorithm": run.algorithm.name, "repeat": run.repeat, **msgspec.to_builtins(found)}
        note(Path(self._hello.state), study.plan, "measured", {run.id: told})
        body = measures_body(self._admission.share(rules, study.plan, found), run=errand.run, round=errand.round)
        self._door.send("measures", self._piece(study, errand, rules), sha256=hashlib.sha256(body).hexdigest(), length=len(body))
        return OutgoingMessage(body=body), []

    def _piece(self, study: WarmStudy, errand: TrainErrand | MeasureErrand, rules: DataRules) -> Piece:
        """What the ledger and the budget are told of a piece of work."""
        plan = study.plan
        return Piece(
            plan=plan,
            run=errand.run,
            round=errand.round,
            dataset=plan.task.name,
            examples=self._training.get(digest(plan), 0),
            limits=Limits(
                epsilon_total=rules.epsilon_total,
                epsilon_per_study=rules.epsilon_per_study,
                delta=min(plan.privacy.delta, rules.delta or Limits().delta),  # a plan must not make its own ε small
            ),
            sandbox=self._level,
            release=rules.release or "approved",
        )

    def _check_charged(self, study: WarmStudy, piece: Piece) -> None:
        """Raise DataUnfit where a trainer died, and the one that answered read a table of another size than was charged for."""
        if self._training.get(digest(study.plan), 0) != piece.examples:
            raise DataUnfit(
                "The data changed while it was trained on, so that its cost was not what was reserved.",
                hint="Nothing was sent; the next round counts what is there now.",
            )

    def refused(self, errand: object, error: FreeholdError) -> None:
        """Write down what this node refuses."""
        if isinstance(errand, TrainErrand | MeasureErrand):
            with contextlib.suppress(FreeholdError):
                self._door.refuse(error, run=errand.run, round=errand.round, measures=isinstance(errand, MeasureErrand))

    def _known(self, run_id: str, plan_fd: int) -> tuple[WarmStudy, Run]:
        """The study and the run; the plan's own digest says which run this is, whatever the coordinator calls it."""
        text = read(plan_fd)
        key = hashlib.sha256(text).hexdigest()
        if key not in self._studies:
            plan = parse(text.decode())
            self._make_room()
            self._studies[key] = self._study(plan, text)
        study = self._studies[key]
        if run_id not in study.runs:
            raise NodeError(
                f"Run {run_id} is none of the plan {digest(study.plan)}.", hint="The coordinator is at fault; nothing was sent."
            )
        study.used = time.monotonic()
        return study, study.runs[run_id]

    def _make_room(self) -> None:
        """Forget plans that only asked, those first that asked longest ago: a coordinator may send as many as it likes."""
        asked = sorted(
            (each.used, key) for key, each in self._studies.items() if each.trainer.pid is None and not each.claims.made
        )
        for _, key in asked[: max(len(self._studies) + 1 - MOST_STUDIES, 0)]:
            del self._studies[key]

    def _study(self, plan: Plan, text: bytes) -> WarmStudy:
        """A study whose trainer is started with its first question, and reads the columns that the owner allows then."""
        found = ""

        def start(module: str, fd: int) -> subprocess.Popen[bytes]:
            nonlocal found
            path = self._hello.datasets.get(plan.task.name)
            if path is None:
                raise DataUnfit(
                    f"This node has no data named {plan.task.name}.", hint=f"Start it with --data {plan.task.name}=FILE."
                )
            spawn, found = self._start_trainer(self._admission.table(plan, path), self._admission.bounds(plan))
            return spawn(module, fd)

        def opening(child: Child) -> None:
            bundle = self._bundles.take(plan, ())
            memory = [sealed(text, "plan"), *([] if bundle is None else [sealed(bundle, "bundle")])]
            try:
                job = Open(client=self._hello.node, data=found)
                reply, got = child.ask(job, memory, timeout_s=TRAINING_LIMIT_S, restarts=0)
            finally:
                close(memory)
            close(got)
            if isinstance(reply, Failed):
                raise DataUnfit(reply.message[:MOST_WORDS], hint=reply.hint[:MOST_WORDS])
            if isinstance(reply, Opened):
                path = self._hello.datasets[plan.task.name]
                self._training[digest(plan)] = checked_records(reply.training, Path(path)) if reply.training else 0
                note(Path(self._hello.state), plan, "data", {"examples": reply.examples, "findings": reply.findings})

        kept = Path(self._hello.state) / "claims" / f"{digest(plan).removeprefix('sha256:')}.json"
        claims = Claims(self._hello.datasets.get(plan.task.name, ""), kept)
        return WarmStudy(plan, text, Child(TRAINER, FromTrainer, spawn=start, opening=opening), claims)

    def events(self) -> list[Event]:
        """What there is to tell beside an answer."""
        found, self._events = [*self._events, *self._admission.events()], []
        return found

    def started(self, said: str) -> None:
        """Write down how trainers run from now on. A ledger that cannot be written is told of with the first piece of work."""
        with contextlib.suppress(FreeholdError):
            self._door.note("started", said or self._level, sandbox=self._level)

    def head(self) -> LedgerHead | None:
        """Where the ledger stands, if the coordinator is to witness it now."""
        return self._door.head()

    def rest(self) -> None:
        """End the trainers that had nothing to do for long, and erase what its owner wants kept no longer."""
        with contextlib.suppress(FreeholdError):  # work is refused for the same reason, and says it
            expire(self._vault, self._door, self._admission.keep_days())
        for study in self._studies.values():
            study.rest()

    def kill(self) -> None:
        """End all trainers at once, whoever waits for them."""
        for study in list(self._studies.values()):
            study.trainer.kill()

    def end(self) -> None:
        """End all trainers."""
        for study in self._studies.values():
            study.trainer.end()


def _packed(view: memoryview) -> int:
    """Sealed memory with a contribution, compressed."""
    memory = Memory("packed")
    try:
        for piece in packed(view):
            memory.write(piece)
    except BaseException:
        close([memory.fd])
        raise
    return memory.seal()


def _end_with(channel: Channel, guard: Callable[[], Guard | None]) -> None:
    """End this process once the agent is gone, also within a long training: the next agent's guard waits for the ledger."""

    def watch() -> None:
        gone = select.poll()
        gone.register(channel.socket, select.POLLRDHUP)
        gone.poll()
        found = guard()
        if found is not None:
            found.kill()
        os._exit(0)  # as with kill -9, all that counts is on the disk

    threading.Thread(target=watch, daemon=True).start()


def main(*, spawn: Spawn = spawn) -> None:
    """`python -m freehold.node.guard FD`: the descriptor of the channel to the agent."""
    channel = channel_from(int(sys.argv[1]))
    guard: Guard | None = None
    if threading.current_thread() is threading.main_thread():  # a process of its own
        _end_with(channel, lambda: guard)
    try:
        while True:
            if guard is not None:
                guard.rest()
            try:
                errand, fds = channel.receive(ToGuard, timeout_s=60.0)
            except TimeoutError:
                continue
            out: list[int] = []
            reply: FromGuard
            try:
                said = None
                if guard is None and isinstance(errand, Hello):
                    trainers = trainers_of(errand, spawn)
                    guard, errand, said = Guard(errand, trainers=trainers), Settle(), trainers
                    guard.started(trainers.said)
                if guard is None:
                    raise NodeError("The guard was not told whose it is.", hint="This is a defect; please report it.")
                reply, out = guard.answer(errand, fds)  # type: ignore[arg-type]
                if said is not None and isinstance(reply, PendingRounds):
                    reply = msgspec.structs.replace(reply, sandbox=said.said, held=said.held)
            except FreeholdError as error:
                if guard is not None:
                    guard.refused(errand, error)
                reply = Refused(code=error.code, message=error.message, hint=error.hint)
            except Exception as error:  # whatever a plan or a coordinator brought about: the trainers of other studies go on
                failed = NodeError(f"The guard failed ({type(error).__name__}).", hint="Nothing was sent; please report it.")
                traceback.print_exc()  # to this node's log
                if guard is not None:
                    guard.refused(errand, failed)
                reply = Refused(code=failed.code, message=failed.message, hint=failed.hint)
            finally:
                close(fds)
            failpoint("guard.answering")
            if guard is not None:
                reply = msgspec.structs.replace(reply, events=guard.events(), head=guard.head())
            channel.send(reply, out)
            close(out)
    except PeerGone:
        pass
    finally:
        if guard is not None:
            guard.end()


if __name__ == "__main__":
    main()
