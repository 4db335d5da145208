"""Asynchronous rounds: against FedBuff in plain numpy, each contribution once, and personal states that follow each other."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from freehold.coordinator.blobs import Folder
from freehold.coordinator.store import connect
from freehold.coordinator.studies import Studies
from freehold.coordinator.study_records import received
from freehold.coordinator.study_tables import contributions, rounds, runs
from freehold.errors import Busy, Conflict, Late, NotAsynchronous, StoreError, TensorsMalformed, UnknownRun
from freehold.plan import Plan, RoundPolicy
from freehold.study.federated import federated_plan
from freehold.wire import codec
from freehold.wire.messages import Measure, Pending, Settled, Train
from tests.unit.coordinator.test_rounds import Denying, Gated, Party, live
from tests.warm import specified

Arrays = dict[str, NDArray[Any]]
MOST, POWER = 2, 0.5


def planned(*, algorithm: str = "fedavg", updates: int = 6, nodes: int = 3, **policy: Any) -> Plan:
    found = federated_plan("heart", algorithm, companions=[], rounds=updates)
    policy = {"mode": "asynchronous", "buffer": 2, "most_staleness": MOST, "least_nodes": nodes, **policy}
    return specified(msgspec.structs.replace(found, round=RoundPolicy(**policy)))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned()


@pytest.fixture(scope="module")
def code() -> Iterator[Gated]:
    found = Gated()
    yield found
    found.end()


class Fleet(Party):
    """Devices that send what a test says, in the order that it says."""

    def __init__(self, folder: Path, plan: Plan, code: Gated, nodes: list[str]) -> None:
        super().__init__(folder, plan, code)
        self.folder, self.nodes = folder, nodes
        self.random = np.random.default_rng(0)
        self.sent: list[tuple[int, float, Arrays]] = []
        """(round that asked, weight, tensors), in the order of arrival."""
        self.last: dict[tuple[str, int], tuple[float, bytes]] = {}

    async def restart(self) -> None:
        await self.close()
        self.store = Denying(connect(f"sqlite:///{self.folder / 'coordinator.sqlite'}"), Folder(self.folder / "blobs"))
        self.studies = Studies(self.store, self.code, lambda dataset, connected: self.nodes, tell=self.events.append)
        await self.studies.recover()

    async def begin(self) -> None:
        await self.start()
        await self.at(0)

    async def asked(self, node: str) -> int:
        work = await self.work(node)
        assert isinstance(work, Train)
        return work.round

    async def send(self, node: str, round: int, *, again: bool = False) -> str:
        """A contribution of random numbers, or the last one of this node for this round once more; its digest."""
        if not again:
            weight = float(self.random.integers(1, 9))
            tensors = {t.name: self.random.normal(size=t.shape).astype(t.dtype) for t in self.run.contribution.tensors}
            self.last[node, round] = weight, codec.write(tensors)
            self.sent.append((round, weight, tensors))
        weight, body = self.last[node, round]
        sha256 = hashlib.sha256(body).hexdigest()
        await self.studies.intake.contribute(node, self.run.id, round, weight=weight, sha256=sha256, body=body)
        return sha256

    async def settled(self, node: str, *pending: int) -> list[Settled]:
        found, _ = await self.studies.work(node, [Pending(run=self.run.id, round=i) for i in pending], 0.0)
        return found

    async def at(self, round: int) -> None:
        await self.until(
            lambda: any(r.round == round and r.state != "waiting" and not r.closing for r in self.studies.open_runs())
        )

    def state(self) -> Arrays:
        (server,) = self.row(runs.c.server)
        return load(self.store.blob_bytes(server))


@pytest.fixture
def fleet(tmp_path: Path, plan: Plan, code: Gated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    monkeypatch.setattr("freehold.coordinator.steps.RETRY_S", 0.01)

    def run(
        test: Callable[[Fleet], Any],
        *,
        plan: Plan = plan,
        nodes: tuple[str, ...] = ("a", "b", "c"),
        folder: Path = tmp_path,
    ) -> None:
        live(lambda: Fleet(folder, plan, code, list(nodes)), test)

    yield run


def fedbuff(start: Arrays, sent: list[tuple[int, float, Arrays]], *, buffer: int) -> list[Arrays]:
    """The paper's algorithm 2 with server rate 1, in float64: the server states after each update."""
    x = {name: value.astype(np.float64) for name, value in start.items()}
    states = []
    for version in range(len(sent) // buffer):
        full = sent[version * buffer : (version + 1) * buffer]
        total = sum(weight for _, weight, _ in full)
        for name in x:
            step = sum(w * (1 + version - base) ** -POWER * delta[name].astype(np.float64) for base, w, delta in full)
            x[name] = x[name] + step / total
        states.append(dict(x))
    return states


async def work_off(p: Fleet, restarts: bool) -> tuple[Arrays, list[Arrays]]:
    """c is slow: its work of round 0 arrives in round 2, that of round 2 in round 3. The state before, and after each update."""
    await p.begin()
    first = {node: await p.asked(node) for node in p.nodes}
    assert first == {"a": 0, "b": 0, "c": 0}
    start, states = p.state(), []

    async def update(version: int, *arrivals: tuple[str, int]) -> None:
        for node, base in arrivals:
            await p.send(node, base)
            if restarts and (node, base) != arrivals[-1]:
                await p.restart()
        await p.at(version + 1)
        states.append(p.state())
        if restarts:
            await p.restart()

    await update(0, ("a", 0), ("b", 0))
    assert (await p.asked("a"), await p.asked("b")) == (1, 1)
    await update(1, ("b", 1), ("a", 1))
    assert await p.asked("a") == 2
    await update(2, ("c", 0), ("a", 2))
    assert (await p.asked("c"), await p.asked("b")) == (3, 3)
    await update(3, ("b", 3), ("c", 3))
    return start, states


@pytest.mark.parametrize("inline_bytes", [1 << 16, 0])
@pytest.mark.parametrize("restarts", [False, True])
def test_it_is_fedbuff_in_plain_numpy(
    fleet: Callable[..., None], restarts: bool, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", inline_bytes)

    async def test(p: Fleet) -> None:
        start, states = await work_off(p, restarts)
        for found, expected in zip(states, fedbuff(start, p.sent, buffer=2), strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert np.allclose(found[name], value, rtol=0, atol=2e-6), name
        assert p.row(rounds.c.heard, rounds.c.round < 4) == [2] * 4
        weights = [p.sent[2 * i][1] + p.sent[2 * i + 1][1] for i in range(4)]
        assert p.row(rounds.c.weight, rounds.c.round < 4) == weights, "each counts once, with what it weighs"
        assert p.row(contributions.c.counted) == [True] * 8

    fleet(test)


def test_a_restart_between_any_two_steps_changes_no_bit(fleet: Callable[..., None], tmp_path: Path) -> None:
    found: list[list[Arrays]] = []

    async def test(p: Fleet) -> None:
        found.append((await work_off(p, restarts=bool(found)))[1])

    for name in ("undisturbed", "restarted"):
        (tmp_path / name).mkdir()
        fleet(test, folder=tmp_path / name)
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_node_learns_what_counted_once_its_round_is_closed(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        sent = await p.send("a", 0)
        assert await p.settled("a", 0) == [], "the round is open"
        assert not any(r.awaits("a") for r in p.studies.open_runs()), "it would train from a state that is not committed"
        await p.send("b", 0)
        await p.at(1)
        assert await p.settled("a", 0) == [Settled(run=p.run.id, round=0, counted=sent)]
        assert await p.settled("c", 0) == [], "c may still send it"
        late = await p.send("c", 0)
        await p.send("a", 1)
        await p.at(2)
        assert await p.settled("c", 0) == [Settled(run=p.run.id, round=0, counted=late)]
        assert p.row(contributions.c.summed, contributions.c.round == 0) == [0, 0, 1]

    fleet(test)


def test_too_old_work_is_refused_and_discarded(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        for round in range(MOST + 1):
            await p.send("a", round)
            await p.send("b", round)
            await p.at(round + 1)
        with pytest.raises(Late, match="too long ago"):
            await p.send("c", 0)
        assert await p.settled("c", 0) == [Settled(run=p.run.id, round=0, counted="")]
        assert await p.asked("c") == MOST + 1, "it is not given up"
        assert len(p.row(contributions.c.node)) == 2 * (MOST + 1)

    fleet(test)


def test_what_a_node_sends_twice_counts_once(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        p.store.denied = "coordinator.contribution"
        with pytest.raises(StoreError):
            await p.send("a", 0)
        await asyncio.gather(p.send("a", 0, again=True), p.send("a", 0, again=True))
        with pytest.raises(Conflict):
            await p.send("a", 0)
        await p.send("b", 0)
        await p.at(1)
        p.last["a", 0] = p.last["a", 0][0], codec.write(p.sent[0][2])
        await p.send("a", 0, again=True)  # the answer was lost
        assert p.row(contributions.c.node) == ["a", "b"] and p.row(rounds.c.heard, rounds.c.round == 0) == [2]
        with pytest.raises(UnknownRun):
            await p.send("stranger", 0)

    fleet(test)


def test_work_from_before_a_nodes_last_contribution_is_refused(fleet: Callable[..., None]) -> None:
    """Its personal state went on: what began before would take it back."""

    async def test(p: Fleet) -> None:
        await p.begin()
        await p.send("a", 0)
        await p.send("b", 0)
        await p.at(1)
        assert await p.asked("c") == 1  # it was started again, and 0 is still on its way
        await p.send("c", 1)
        with pytest.raises(Late, match="since it was given"):
            await p.send("c", 0)
        await p.send("a", 1)
        await p.at(2)
        with pytest.raises(Late, match="since it was given"):
            await p.send("c", 0)
        assert len(p.row(contributions.c.node)) == 4

    fleet(test)


def test_what_arrives_while_a_round_closes_counts_in_the_next(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        await p.send("a", 0)
        p.code.let.clear()
        await p.send("b", 0)
        await asyncio.wait_for(p.code.asked.wait(), 30)
        late = asyncio.create_task(p.send("c", 0))
        p.code.let.set()
        await asyncio.wait_for(late, 30)
        assert [row.node for row in p.store.read(lambda c: received(c, p.run.id, 1))] == ["c"]
        assert p.row(rounds.c.heard, rounds.c.round == 0) == [2]

    fleet(test)


def test_as_many_train_at_once_as_the_cohort_says(fleet: Callable[..., None]) -> None:
    names = tuple("abcdefgh")

    async def test(p: Fleet) -> None:
        await p.begin()
        (run,) = p.studies.open_runs()
        for round in range(3):
            await p.at(round)
            for _ in range(3):
                at_work = [n for n in run.cohort if n not in run.received]
                assert len(at_work) == 2
                await p.send(at_work[0], round if run.buffer and run.buffer.since.get(at_work[0], round) == round else round - 1)
            await p.at(round + 1)
        assert p.row(rounds.c.heard, rounds.c.round < 3) == [3] * 3, "the buffer may be larger than the cohort"

    fleet(test, plan=planned(cohort=2, buffer=3, nodes=8), nodes=names)


def test_after_the_last_update_everybody_is_measured(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        await p.send("a", 0)
        await p.send("b", 0)
        for node in p.nodes:
            assert isinstance(await p.work(node), Measure)
        with pytest.raises(Late):
            await p.send("c", 0)
        assert await p.settled("c", 0) == [Settled(run=p.run.id, round=0, counted="")]
        for node in p.nodes:
            await p.measure(node)
        await p.until(lambda: not p.studies.open_runs())

    fleet(test, plan=planned(updates=1))


@pytest.mark.parametrize("algorithm", ["scaffold", "fedproto", "ifca", "feddbe"])
def test_what_needs_the_mean_of_a_round_is_refused(algorithm: str) -> None:
    with pytest.raises(NotAsynchronous, match=algorithm):
        planned(algorithm=algorithm)


def test_a_companion_that_needs_the_mean_of_a_round_is_refused_with_its_plan() -> None:
    found = federated_plan("heart", "fedavg", companions=["scaffold"], rounds=2)
    with pytest.raises(NotAsynchronous, match="scaffold"):
        specified(msgspec.structs.replace(found, round=RoundPolicy(mode="asynchronous", buffer=2)))


def test_what_is_refused_leaves_no_file(fleet: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", 0)

    async def test(p: Fleet) -> None:
        await p.begin()
        await p.send("a", 0)
        for _ in range(3):
            with pytest.raises(Conflict):
                await p.send("a", 0)
        assert p.store.sweep() == 0, "a node could fill the disk"
        assert p.row(contributions.c.node) == ["a"]

    fleet(test)


def test_no_number_is_too_large_for_a_later_round(fleet: Callable[..., None]) -> None:
    """A round with one node has one place; what is looked into then may count in a round with two."""

    async def test(p: Fleet) -> None:
        await p.begin()
        (run,) = p.studies.open_runs()
        assert run.capacity == 1
        large = np.float32(2.0 ** (61.5 - p.run.contribution.scale))
        body = codec.write({t.name: np.full(t.shape, large, t.dtype) for t in p.run.contribution.tensors})
        p.last["a", 0] = 1.0, body
        with pytest.raises(TensorsMalformed, match="too large"):
            await p.send("a", 0, again=True)
        assert p.row(contributions.c.node) == []

    fleet(test, plan=planned(nodes=1), nodes=("a",))


def test_a_place_is_free_again_for_who_waits_when_a_contribution_cannot_be_entered(fleet: Callable[..., None]) -> None:
    async def test(p: Fleet) -> None:
        await p.begin()
        (run,) = p.studies.open_runs()
        assert run.buffer is not None and run.capacity == 1
        write, change = p.store.write_alike, run.buffer.change
        full, waits = asyncio.Event(), asyncio.Event()

        async def failing(work: Any, item: Any, point: str) -> Any:
            if point == "coordinator.contribution" and not full.is_set():
                await full.wait()
                raise StoreError("the disk is full")
            return await write(work, item, point)

        async def noted() -> None:
            waits.set()
            await change()

        p.store.write_alike, run.buffer.change = failing, noted  # type: ignore[method-assign]
        first = asyncio.create_task(p.send("a", 0))
        await p.until(lambda: run.buffer is not None and "a" in run.buffer.entering)
        second = asyncio.create_task(p.send("b", 0))
        await asyncio.wait_for(waits.wait(), 30)
        full.set()
        with pytest.raises(StoreError):
            await first
        await asyncio.wait_for(second, 30)
        assert p.row(contributions.c.node) == ["b"]

    fleet(test, plan=planned(buffer=1, nodes=2), nodes=("a", "b"))


def test_who_finds_no_place_in_time_is_refused_and_leaves_nothing(
    fleet: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", 0)

    async def test(p: Fleet) -> None:
        await p.begin()
        (run,) = p.studies.open_runs()
        assert run.buffer is not None and run.capacity == 1
        run.buffer.entering.add("b")  # as long as the test says
        monkeypatch.setattr("freehold.coordinator.asynchronous.PLACE_S", 0.01)
        with pytest.raises(Busy, match="No round"):
            await p.send("a", 0)
        assert p.row(contributions.c.node) == []
        assert [path.name for path in (p.folder / "blobs").iterdir() if "server" not in path.name] == []
        run.buffer.entering.clear()
        await p.send("a", 0, again=True)
        assert p.row(contributions.c.node) == ["a"]

    fleet(test, plan=planned(buffer=1, nodes=2), nodes=("a", "b"))
