"""The guard and a trainer that takes its time: waited for as long as is left, and further for a round that still waits."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import msgspec
import numpy as np
import pytest

from freehold.errors import BudgetExceeded, DataUnfit, NodeError, PeerGone, PlanWaits, TrainerFailed, WeightRefused
from freehold.node import admission, warm
from freehold.node import guard as guard_module
from freehold.node.audit import entries
from freehold.node.errands import Busy, FromGuard, Hello, Outgoing, PendingRounds, Quit, Refused, Settle, TrainErrand
from freehold.node.guard import Guard
from freehold.node.jobs import Open, Opened, ToTrainer, Trained, TrainJob
from freehold.node.warm import WarmStudy
from freehold.plan import Plan, Privacy, TaskRef, dumps, parse, runs_of
from freehold.policy import sample_policy
from freehold.study.federated import federated_plan
from freehold.wire import codec
from freehold.wire.local import Channel, channel_from, close, pair, sealed
from tests.warm import specified


@pytest.fixture(scope="module")
def plan() -> Plan:
    return specified(federated_plan("heart", "fedavg", companions=[], rounds=3))


class Trainers:
    """Trainers in threads; each answers a round when it is let."""

    def __init__(self, plan: Plan) -> None:
        self.body = codec.write({t.name: np.zeros(t.shape, t.dtype) for t in plan.contribution.tensors})
        self.jobs: Queue[TrainJob] = Queue()
        self.let = threading.Semaphore(0)
        self.dies = 0
        """So many die while they read the data."""
        self.dies_training = 0
        """So many die while they train."""
        self.records = 0
        """Each that opens has one record more to train on, if there are some."""
        self.started = self.ended = 0

    def spawn(self, module: str, fd: int) -> subprocess.Popen[bytes]:
        self.started += 1
        threading.Thread(target=self._serve, args=(channel_from(os.dup(fd)),), daemon=True).start()
        return self  # type: ignore[return-value]

    def _serve(self, channel: Channel) -> None:
        try:
            while True:
                job, fds = channel.receive(ToTrainer)
                close(fds)
                if isinstance(job, Open) and self.dies:
                    self.dies -= 1
                    channel.close()
                    return
                if isinstance(job, Open):
                    self.records += bool(self.records)
                    channel.send(Opened(examples=10, training=self.records, findings=[]))
                    continue
                if self.dies_training:
                    self.dies_training -= 1
                    channel.close()
                    return
                assert isinstance(job, TrainJob)
                self.jobs.put(job)
                self.let.acquire()
                out = [sealed(self.body, "departing"), sealed(b"personal", "personal")]
                channel.send(Trained(weight=7.0), out)
                close(out)
        except PeerGone:
            channel.close()

    # As much of a process as a `Child` needs.
    pid = 0

    def kill(self) -> None:
        self.ended += 1

    def wait(self) -> int:
        return 0


class Node:
    """A guard, and what its agent says to it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.trainers, self.plan, self.run = Trainers(plan), dumps(plan).encode(), runs_of(plan)[0].id
        folder.mkdir(exist_ok=True)
        (folder / "policy.toml").write_text(sample_policy(plan.task.name))
        hello = Hello(node="alice", state=str(folder), datasets={plan.task.name: "heart.csv"})
        self.guard = Guard(hello, spawn=self.trainers.spawn)

    def train(self, round: int, left_s: float) -> FromGuard:
        fds = [sealed(self.plan, "plan"), sealed(b"shared", "shared")]
        errand = TrainErrand(run=self.run, round=round, cohort=2, population=2, left_s=left_s)
        try:
            found, out = self.guard.answer(errand, fds)
        finally:
            close(fds)
        close(out)
        return found


@pytest.fixture
def node(tmp_path: Path, plan: Plan) -> Iterator[Node]:
    found = Node(tmp_path, plan)
    yield found
    found.guard.end()
    for _ in range(found.trainers.started):
        found.trainers.let.release()


def test_a_trainer_that_is_busy_at_the_deadline_works_on(node: Node) -> None:
    assert isinstance(node.train(0, 0.0), Busy)
    assert isinstance(node.train(0, 0.0), Busy)
    node.trainers.let.release()
    found = node.train(0, 60.0)
    assert isinstance(found, Outgoing) and found.weight == 7.0
    assert (node.trainers.started, node.trainers.ended, node.trainers.jobs.qsize()) == (1, 0, 1)


def test_a_trainer_that_is_given_up_is_ended(node: Node) -> None:
    assert isinstance(node.train(0, 0.0), Busy)
    found, _ = node.guard.answer(Quit(), [])
    assert isinstance(found, PendingRounds) and found.pending == [] and node.trainers.ended == 1
    node.trainers.let.release(2)
    assert isinstance(node.train(1, 60.0), Outgoing) and node.trainers.started == 2


def test_another_round_is_not_answered_with_what_comes_too_late(node: Node) -> None:
    assert isinstance(node.train(0, 0.0), Busy)
    node.trainers.let.release(2)
    assert isinstance(node.train(1, 60.0), Outgoing)
    assert [node.trainers.jobs.get().round for _ in range(2)] == [0, 1]
    assert [pending.round for pending in node.guard.answer(Quit(), [])[0].pending] == [1]  # type: ignore[union-attr]


def test_what_counts_with_more_than_the_plan_allows_does_not_leave(tmp_path: Path, plan: Plan) -> None:
    """Whatever the trainer says: it may run a plan's own code."""
    bounded = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, most_weight=6))
    node = Node(tmp_path, bounded)
    try:
        node.trainers.let.release()
        with pytest.raises(WeightRefused):
            node.train(0, 60.0)
        found, _ = node.guard.answer(Settle(), [])
        assert isinstance(found, PendingRounds) and found.pending == []
    finally:
        node.guard.end()


def test_a_plan_does_not_make_its_own_epsilon_small_by_a_large_delta(tmp_path: Path, plan: Plan) -> None:
    """At a δ near 1 everything has ε = 0. A policy that limits ε and says no δ counts at 1e-5."""
    noised = msgspec.structs.replace(
        plan,
        training=msgspec.structs.replace(plan.training, weighting="uniform"),
        privacy=Privacy(unit="client", max_norm=1.0, noise_multiplier=0.5, delta=0.999),
        contribution=msgspec.structs.replace(plan.contribution, scale=20),
    )
    node = Node(tmp_path, noised)
    (tmp_path / "policy.toml").write_text('[data.heart]\nrelease = "noised"\ntasks = ["heart"]\nepsilon_total = 1.0\n')
    with pytest.raises(BudgetExceeded):
        node.train(0, 5.0)
    assert node.trainers.jobs.empty()
    node.guard.end()


def test_a_plan_that_nobody_thought_of_does_not_end_the_guard(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trainers, (channel, theirs) = Trainers(plan), pair()
    its = channel_from(theirs.detach())
    monkeypatch.setattr(sys, "argv", ["guard", "0"])
    monkeypatch.setattr(guard_module, "channel_from", lambda fd: its)
    thread = threading.Thread(target=lambda: guard_module.main(spawn=trainers.spawn), daemon=True)
    thread.start()
    channel.send(Hello(node="alice", state=str(tmp_path), datasets={}, sandbox="off"))
    assert isinstance(channel.receive(FromGuard, timeout_s=60.0)[0], PendingRounds)
    memory = [sealed(b"name = \xff", "plan"), sealed(b"", "shared")]
    for _ in range(2):
        channel.send(TrainErrand(run="a", round=0, cohort=2, population=2, left_s=1.0), memory)
        found, _ = channel.receive(FromGuard, timeout_s=60.0)
        assert isinstance(found, Refused) and found.message == "The guard failed (UnicodeDecodeError)."
    assert [line.code for line in entries(tmp_path / "ledger") if line.kind == "refusal"] == [NodeError.code] * 2
    close(memory)
    channel.close()
    thread.join(60)
    its.close()
    assert not thread.is_alive() and "UnicodeDecodeError" in capfd.readouterr().err


def test_plans_that_only_ask_do_not_fill_the_memory(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MOST_STUDIES", 3)
    monkeypatch.setattr(admission, "MOST_DIGESTS", 3)
    node.trainers.let.release()
    assert isinstance(node.train(0, 10.0), Outgoing)
    gc.collect()
    trained = sum(type(each) is WarmStudy for each in gc.get_objects())
    for index in range(10):
        other = msgspec.structs.replace(parse(node.plan.decode()), name=f"other{index}", task=TaskRef(name="unknown"))
        memory = [sealed(dumps(other).encode(), "plan"), sealed(b"shared", "shared")]
        with pytest.raises(PlanWaits):
            node.guard.answer(TrainErrand(run=runs_of(other)[0].id, round=0, cohort=2, population=2, left_s=1.0), memory)
        close(memory)
    gc.collect()
    assert sum(type(each) is WarmStudy for each in gc.get_objects()) <= trained + 2
    node.trainers.let.release()
    assert isinstance(node.train(1, 10.0), Outgoing)
    assert node.trainers.started == 1, "what was trained stays warm"


def test_a_trainer_that_is_busy_rests_on_nobody_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(node.train(0, 0.0), Busy)
    node.guard.rest()
    assert node.trainers.ended == 0
    monkeypatch.setattr(warm, "TRAINING_LIMIT_S", 0.0)
    with pytest.raises(TrainerFailed):
        node.train(0, 60.0)
    assert node.trainers.ended == 1


def test_a_trainer_that_dies_while_it_reads_the_data_is_started_again(node: Node) -> None:
    node.trainers.dies = 1
    node.trainers.let.release()
    assert isinstance(node.train(0, 60.0), Outgoing)
    assert node.trainers.started == 2


def test_one_that_always_dies_there_is_given_up(node: Node) -> None:
    node.trainers.dies = 100
    with pytest.raises(TrainerFailed, match="died"):
        node.train(0, 60.0)


def test_what_was_trained_on_more_records_than_were_charged_for_is_not_sent(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer dies while it trains, and the next one finds another table."""
    monkeypatch.setattr(guard_module, "checked_records", lambda claimed, table: claimed)
    node.trainers.records, node.trainers.dies_training = 5, 1
    node.trainers.let.release(2)
    with pytest.raises(DataUnfit, match="changed"):
        node.train(0, 60.0)
    assert isinstance(node.train(1, 60.0), Outgoing)
