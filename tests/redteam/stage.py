"""A real guard with its vault, ledger and budget, a trainer that does what a test tells it, and the agent's side."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from freehold.errors import PeerGone
from freehold.node import guard as guard_module
from freehold.node.errands import FromGuard, Hello, MeasureErrand, Outgoing, OutgoingMessage, Refused, TrainErrand, heard
from freehold.node.jobs import Open, Opened, ToTrainer, TrainJob
from freehold.node.lines import Line, parse, raw_lines
from freehold.plan import Contribution, Plan, Privacy, RoundPolicy, TaskRef, TensorSpec, Training, dumps, runs_of
from freehold.plan.tables import AlgorithmRef
from freehold.wire import codec
from freehold.wire.local import Channel, channel_from, close, pair, read, sealed

ROW = "63,1,145,233,150,2.3"
"""What must not leave: a record."""
PATIENCE_S = 30.0

Reply = tuple[bytes | msgspec.Struct, Sequence[int]]
Script = Callable[["Asked"], Reply | list[Reply]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the trainer was asked, with what came along."""

    job: Any
    shared: bytes
    personal: bytes | None
    spec: Contribution
    said: list[Any]
    """What this script keeps between rounds."""


def tensors(spec: Contribution, value: float = 0.25) -> dict[str, NDArray[np.generic]]:
    return {t.name: np.full(t.shape, value, t.dtype) for t in spec.tensors}


def good(asked: Asked, **changed: Any) -> Reply:
    """An honest answer, but for what is changed: `body`, `personal` (bytes) and fields of the message."""
    body = changed.pop("body", None) or codec.write(tensors(asked.spec))
    personal = changed.pop("personal", b"personal")
    message = {"type": "trained", "weight": 7.0, **changed}
    return msgspec.json.encode(message), [sealed(body, "departing"), sealed(personal, "personal")]


def measured(asked: Asked, **changed: Any) -> Reply:
    told = {"test": {"examples": 20, "sums": {"count": 20.0, "correct": 15.0, "loss": 7.25}}}
    return msgspec.json.encode({"type": "measured", "splits": told, "alone": told, "served": "local", **changed}), []


def honest(asked: Asked) -> Reply:
    return good(asked) if isinstance(asked.job, TrainJob) else measured(asked)


def plan_of(name: str = "redteam", privacy: Privacy | None = None, rounds: int = 3, **training: Any) -> Plan:
    """A plan on the installed heart task whose contribution is small."""
    kinds = {"w": ("float32", (8,)), "b": ("float64", ())}
    spec = Contribution(tensors=tuple(TensorSpec(name=n, shape=s, dtype=d) for n, (d, s) in kinds.items()))  # type: ignore[arg-type]
    weighting = {"weighting": "uniform"} if privacy is not None else {}
    return Plan(
        name=name,
        task=TaskRef(name="heart", version="1"),
        algorithm=AlgorithmRef(name="fedavg"),
        training=Training(rounds=rounds, batch_size=8, epochs=1, **{**weighting, **training}),
        round=RoundPolicy(least_nodes=1),
        contribution=spec,
        privacy=privacy or Privacy(),
    )


@dataclass
class Threads:
    """Trainers in threads of this process."""

    plan: Plan
    script: Script = honest
    opened: Callable[[], msgspec.Struct | bytes] = lambda: Opened(examples=30, findings=[])
    said: list[Any] = field(default_factory=list)
    started: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    pid: int = 0

    def spawn(self, module: str, fd: int) -> subprocess.Popen[bytes]:
        self.started += 1
        thread = threading.Thread(target=self._serve, args=(channel_from(os.dup(fd)),), daemon=True)
        self.threads.append(thread)
        thread.start()
        return self  # type: ignore[return-value]

    def _serve(self, channel: Channel) -> None:
        try:
            while True:
                job, fds = channel.receive(ToTrainer)
                bodies = [read(fd) for fd in fds]
                close(fds)
                if isinstance(job, Open):
                    raw(channel, self.opened(), [])
                    continue
                spec = runs_of(self.plan)[job.number].contribution
                asked = Asked(
                    job=job,
                    shared=bodies[0],
                    personal=bodies[1] if len(bodies) > 1 else None,
                    spec=spec,
                    said=self.said,
                )
                replies = self.script(asked)
                for body, out in replies if isinstance(replies, list) else [replies]:
                    raw(channel, body, out)
                    close(out)
        except (PeerGone, OSError):
            channel.close()

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


def raw(channel: Channel, body: msgspec.Struct | bytes, fds: Sequence[int]) -> None:
    """Send what a `Channel` would not."""
    text = body if isinstance(body, bytes) else msgspec.json.encode(body)
    socket.send_fds(channel.socket, [text], list(fds))


@dataclass(frozen=True, kw_only=True)
class Left:
    """What came to the agent's side."""

    reply: FromGuard
    bodies: list[bytes]
    fds: list[int]
    """Still open, for who wants to look again."""
    declined: tuple[int, str] | None
    """What a coordinator hears of a refusal."""

    @property
    def leaves(self) -> bytes:
        """All that goes to the coordinator."""
        return self._answer() + msgspec.json.encode(self.reply.head)

    def _answer(self) -> bytes:
        if isinstance(self.reply, Refused):
            assert self.declined is not None and not self.bodies
            return msgspec.json.encode(self.declined)
        if isinstance(self.reply, Outgoing):
            return b"".join([repr(self.reply.weight).encode(), *self.bodies])
        assert not self.bodies
        return self.reply.body if isinstance(self.reply, OutgoingMessage) else msgspec.json.encode(self.reply)


class Stage:
    """One node's guard, run as the process runs it, and what its agent sees."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        script: Script = honest,
        *,
        share: str = "never",
        release: str = "trusted-code",
        spawn: Callable[[str, int], Any] | None = None,
    ) -> None:
        self.folder, self.plan, self.threads = folder, plan, Threads(plan, script)
        folder.mkdir(parents=True, exist_ok=True)
        self.table = folder / "heart.csv"
        self.table.write_text(f"age,sex,bp\n{ROW}\n")
        rules = f'[data.heart]\nrelease = "{release}"\ntasks = ["heart"]\nshare_benefit = "{share}"\n'
        (folder / "policy.toml").write_text(rules)
        self._channel, self._theirs = pair()
        theirs = self._theirs
        self._thread = threading.Thread(target=guard_module.main, kwargs={"spawn": spawn or self.threads.spawn}, daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["guard", str(theirs.fileno())])
            patch.setattr(guard_module, "channel_from", lambda fd: Channel(theirs))
            self._thread.start()
            self.ask(Hello(node="alice", state=str(folder), datasets={"heart": str(self.table)}, sandbox="off"))

    def ask(self, errand: msgspec.Struct, fds: Sequence[int] = ()) -> Left:
        """What the guard answers; PeerGone if it died of it."""
        self._channel.send(errand, fds)
        close(fds)
        reply, got = self._channel.receive(FromGuard, timeout_s=PATIENCE_S)
        declined = heard(reply.code) if isinstance(reply, Refused) else None
        return Left(reply=reply, bodies=[read(fd) for fd in got], fds=got, declined=declined)  # type: ignore[arg-type]

    def _fds(self, plan: Plan) -> list[int]:
        return [sealed(dumps(plan).encode(), "plan"), sealed(codec.write({}), "shared")]

    def train(self, round: int = 0, plan: Plan | None = None) -> Left:
        plan = plan or self.plan
        run = runs_of(plan)[0].id
        return self.ask(TrainErrand(run=run, round=round, cohort=2, population=2, left_s=PATIENCE_S), self._fds(plan))

    def measure(self, round: int = 3) -> Left:
        return self.ask(MeasureErrand(run=runs_of(self.plan)[0].id, round=round, left_s=PATIENCE_S), self._fds(self.plan))

    def ledger(self) -> list[Line]:
        path = self.folder / "ledger" / "ledger.jsonl"
        return [parse(line.rstrip(b"\n")) for line in raw_lines(path)] if path.exists() else []

    def sent(self) -> list[Line]:
        return [line for line in self.ledger() if line.verdict == "sent"]

    def refused(self) -> list[Line]:
        return [line for line in self.ledger() if line.kind == "refusal"]

    def close(self) -> None:
        self._channel.close()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self._theirs.close()
        for thread in self.threads.threads:
            thread.join(PATIENCE_S)


def stopped(stage: Stage, left: Left, code: int) -> None:
    """Nothing leaves but a number that training code cannot choose and its sentence; one line of the ledger says so."""
    assert isinstance(left.reply, Refused) and left.reply.code == code, left.reply
    assert left.bodies == [] and left.fds == []
    assert left.declined == heard(code)
    assert ROW.encode() not in left.leaves
    line = stage.refused()[-1]
    assert (line.code, line.verdict) == (code, "refused")
    assert ROW not in (stage.folder / "ledger" / "ledger.jsonl").read_text()


def numbers(body: bytes) -> NDArray[np.float64]:
    """All numbers of a contribution, one after the other."""
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in codec.arrays(body).values()])
