"""Rounds in the corners: a store that keeps what it denies, a study that is stopped in the middle, nobody left to ask."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from freehold.coordinator import intake as intake_module
from freehold.coordinator.blobs import Folder
from freehold.coordinator.child import ServerCode, ServerStates
from freehold.coordinator.store import Alike, Store, connect
from freehold.coordinator.studies import Studies
from freehold.coordinator.study_tables import contributions, measures, rounds, runs, studies
from freehold.errors import StoreError, StudyRefused, WeightRefused
from freehold.events import Event
from freehold.plan import Plan, dumps, runs_of
from freehold.study.federated import federated_plan
from freehold.wire import codec
from freehold.wire.messages import Blob, Measure, Measures, Pending, Train, Work
from tests.warm import spawn, specified

T = TypeVar("T")


class Denying(Store):
    """Says of the next write at a point that it failed, although it was committed."""

    denied: str = ""
    meanwhile: tuple[str, Callable[[], None]] = ("", lambda: None)
    """What happens just before the next write at a point."""
    blind: bool = False
    """And cannot read a blob, the first time that it is asked after that."""

    def blob(self, sha256: str) -> Blob:
        if self.blind and not self.denied:
            self.blind = False
            raise StoreError("the bucket is away")
        return super().blob(sha256)

    async def write_alike(self, work: Alike[Any, T], item: Any, point: str) -> T:
        if point == self.meanwhile[0]:
            self.meanwhile, happen = ("", lambda: None), self.meanwhile[1]
            happen()
        found = await super().write_alike(work, item, point)
        if point == self.denied:
            self.denied = ""
            raise StoreError("the connection was lost while committing")
        return found


class Gated(ServerCode):
    """Closes a round only when it is let."""

    def __init__(self) -> None:
        super().__init__(spawn=spawn)
        self.asked: asyncio.Event = asyncio.Event()
        self.let: asyncio.Event = asyncio.Event()
        self.let.set()

    def close_round(self, *args: Any, **kwargs: Any) -> ServerStates:
        loop = self.loop
        loop.call_soon_threadsafe(self.asked.set)
        asyncio.run_coroutine_threadsafe(self.let.wait(), loop).result(60)
        return super().close_round(*args, **kwargs)

    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="module")
def plan() -> Plan:
    return specified(federated_plan("heart", "fedavg", companions=[], rounds=2))


@pytest.fixture(scope="module")
def code() -> Iterator[Gated]:
    found = Gated()
    yield found
    found.end()


class Party:
    """A coordinator's studies without a network; nodes send zeros."""

    def __init__(self, folder: Path, plan: Plan, code: Gated) -> None:
        code.loop = asyncio.get_running_loop()
        code.asked, code.let = asyncio.Event(), asyncio.Event()
        code.let.set()
        self.plan, self.code, self.nodes = plan, code, ["a", "b"]
        self.run = runs_of(plan)[0]
        self.events: list[Event] = []
        self.store = Denying(connect(f"sqlite:///{folder / 'coordinator.sqlite'}"), Folder(folder / "blobs"))
        self.folder = folder / "blobs"
        self.spooled = False  # contributions arrive as files
        self.studies = Studies(self.store, code, lambda dataset, connected: self.nodes, tell=self.events.append)
        shapes = {t.name: np.zeros(t.shape, t.dtype) for t in self.run.contribution.tensors}
        self.body = codec.write(shapes)

    async def start(self) -> str:
        return await self.studies.start(dumps(self.plan))

    async def work(self, node: str) -> Work:
        _, found = await self.studies.work(node, [], 30.0)
        assert found is not None
        return found

    async def contribute(self, node: str, round: int, *, weight: float = 1.0) -> None:
        sha256 = hashlib.sha256(self.body).hexdigest()
        body: bytes | Path = self.body
        if self.spooled:
            body = self.folder / ".incoming-body.part"
            body.write_bytes(self.body)
        await self.studies.intake.contribute(node, self.run.id, round, weight=weight, sha256=sha256, body=body)

    async def train(self, node: str, round: int) -> None:
        work = await self.work(node)
        assert isinstance(work, Train) and work.round == round
        await self.contribute(node, round)

    async def measure(self, node: str) -> None:
        work = await self.work(node)
        assert isinstance(work, Measure)
        await self.studies.measured(node, Measures(run=work.run, round=work.round, splits={}))

    def row(self, column: sa.Column[Any], *where: sa.ColumnElement[bool]) -> list[Any]:
        return self.store.read(lambda c: list(c.execute(sa.select(column).where(*where)).scalars()))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.code.let.set()
        await self.studies.close()
        self.store.close()


P = TypeVar("P", bound=Party)


def live(make: Callable[[], P], test: Callable[[P], Any]) -> None:
    """Run a test's coroutine with a party that is made for it, and then closed."""

    async def whole() -> None:
        found = make()
        try:
            await test(found)
        finally:
            await found.close()

    asyncio.run(asyncio.wait_for(whole(), 120))


@pytest.fixture
def party(tmp_path: Path, plan: Plan, code: Gated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Runs a test's coroutine with a party of its own, which is then closed."""
    monkeypatch.setattr("freehold.coordinator.steps.RETRY_S", 0.01)

    yield lambda test: live(lambda: Party(tmp_path, plan, code), test)


POINTS = ["coordinator.study", "coordinator.contribution", "coordinator.round", "coordinator.run_ended"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("inline_bytes", [1 << 16, 0])
def test_what_the_store_kept_and_denied_counts_once(
    party: Callable[[Any], None], point: str, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", inline_bytes)  # 0: everything lies in files

    async def test(p: Party) -> None:
        if point == "coordinator.study":
            p.store.denied = point
            with pytest.raises(StoreError):
                await p.start()
        study = await p.start()
        for round in (0, 1):
            if point == "coordinator.contribution":
                p.store.denied = point
                with pytest.raises(StoreError):
                    await p.train("a", round)
            await p.train("a", round)
            for place in p.row(contributions.c.place, contributions.c.place.is_not(None)):
                assert (p.folder / place).exists(), "a coordinator that is started again sums it anew"
            if point == "coordinator.round":
                p.store.denied = point
            await p.train("b", round)
        for node in p.nodes:
            await p.work(node)
        if point == "coordinator.run_ended":
            p.store.denied = point
        for node in p.nodes:
            await p.measure(node)
        await p.until(lambda: not p.studies.open_runs())
        assert not p.store.denied, "the point was reached"
        assert p.row(studies.c.state, studies.c.digest == study) == ["finished"]
        assert p.row(runs.c.state) == ["finished"]
        assert p.row(rounds.c.heard, rounds.c.round < 2) == [2, 2]
        assert p.row(contributions.c.counted) == [True] * 4
        kept = {path.name for path in p.folder.iterdir()}
        p.store.sweep()
        left = {path.name for path in p.folder.iterdir()}
        # A denied round leaves at most the files of the round before it, until the next start.
        assert kept == left or point == "coordinator.round"
        assert len(left) == (0 if inline_bytes else 1), "the last state"

    party(test)


@pytest.mark.parametrize("round", [0, 1])
def test_a_round_that_was_kept_and_denied_and_cannot_be_read_at_first(party: Callable[[Any], None], round: int) -> None:
    async def test(p: Party) -> None:
        study = await p.start()
        for now in (0, 1):
            await p.train("a", now)
            if now == round:
                p.store.denied, p.store.blind = "coordinator.round", True
            await p.train("b", now)
        for node in p.nodes:
            await p.measure(node)
        await p.until(lambda: not p.studies.open_runs())
        assert not p.store.blind, "the point was reached"
        assert p.row(studies.c.state, studies.c.digest == study) == ["finished"]
        assert p.row(rounds.c.heard, rounds.c.round < 2) == [2, 2]

    party(test)


def test_a_study_that_is_stopped_while_a_round_closes_stays_stopped(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        study = await p.start()
        await p.train("a", 0)
        p.code.let.clear()
        await p.train("b", 0)
        await asyncio.wait_for(p.code.asked.wait(), 30)
        await p.studies.stop(study, "enough")
        p.code.let.set()
        await p.studies.close()  # waits for the step that was under way
        assert p.row(studies.c.state) == ["stopped"] and p.row(runs.c.state) == ["stopped"]
        assert p.row(rounds.c.round) == [0], "no other round was opened"
        assert not [event for event in p.events if event.name in ("coordinator.error", "study.failed", "round.closed")]

    party(test)


def test_a_round_that_nobody_is_left_in_opens_for_whoever_comes(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        await p.start()
        await p.work("a")
        p.nodes = []
        await p.studies.gone("a")
        await p.studies.gone("b")
        p.nodes = ["c", "d"]
        await p.studies.advance()
        await p.studies.advance()
        for node in ("c", "d"):
            await p.train(node, 0)
        work = await p.work("c")
        assert isinstance(work, Train) and (work.round, work.population) == (1, 2)
        assert p.row(rounds.c.heard, rounds.c.round == 0) == [2]
        assert p.row(rounds.c.population, rounds.c.round == 0) == [2]

    party(test)


def test_a_node_that_rests_while_a_round_opens_is_not_waited_for(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        await p.start()
        await p.train("a", 0)
        p.store.meanwhile = ("coordinator.round", lambda: p.nodes.remove("b"))  # it is drawn, and offers nothing since
        await p.train("b", 0)
        await p.train("a", 1)
        work = await p.work("a")
        assert isinstance(work, Measure) and work.round == 2
        assert p.row(rounds.c.cohort, rounds.c.round < 2) == ["a,b", "a"]
        assert p.row(rounds.c.heard, rounds.c.round < 2) == [2, 1]

    party(test)


def test_who_stops_or_rests_is_waited_for_where_the_study_measures_only(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        await p.start()
        await p.work("b")
        await p.train("a", 0)
        await p.studies.offered("b", {"another"})
        assert p.row(rounds.c.cohort) == ["a,b"]
        await p.studies.offered("b", {"heart"})
        for node in ("a", "b"):
            await p.train(node, 1)
        await p.studies.offered("b", {"heart"})
        for node in ("a", "b"):
            await p.measure(node)
        await p.until(lambda: not p.studies.open_runs())
        assert p.row(rounds.c.heard, rounds.c.round < 2) == [1, 2]
        assert sorted(p.row(measures.c.node)) == ["a", "b"]

    party(test)


@pytest.mark.parametrize("how", ["left", "stops"])
def test_when_the_last_of_a_round_goes_another_is_asked_at_once(party: Callable[[Any], None], how: str) -> None:
    async def test(p: Party) -> None:
        p.plan = msgspec.structs.replace(p.plan, round=msgspec.structs.replace(p.plan.round, cohort=1))
        p.run = runs_of(p.plan)[0]
        await p.start()
        await p.until(lambda: bool(p.studies.open_runs()[0].cohort))
        (asked,) = p.studies.open_runs()[0].cohort
        p.nodes.remove(asked)
        await (p.studies.gone(asked) if how == "left" else p.studies.offered(asked, {"heart"}))
        await p.train(p.nodes[0], 0)
        await p.until(lambda: p.studies.open_runs()[0].round == 1)
        assert p.row(rounds.c.heard, rounds.c.round == 0) == [1]

    party(test)


def test_two_contributions_have_one_name_only_if_they_are_the_same_of_the_same_node(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        await p.start()
        (run,) = p.studies.open_runs()
        same, near = "a" * 64, "a" * 16 + "b" * 48
        names = [run.place_of(9**9, node, sha256) for node in ("a", "b") for sha256 in (same, near)]
        assert len(set(names)) == 4 and names[0] == run.place_of(9**9, "a", same)
        assert all(len(f"{name}.{'0' * 8}.safetensors") <= 80 for name in names), "the width of its column"

    party(test)


def test_a_contribution_that_counts_with_more_than_the_plan_allows_is_refused(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        p.plan = msgspec.structs.replace(p.plan, training=msgspec.structs.replace(p.plan.training, most_weight=7))
        p.run = runs_of(p.plan)[0]
        await p.start()
        await p.work("a")
        with pytest.raises(WeightRefused):
            await p.contribute("a", 0, weight=7.5)
        assert p.row(contributions.c.node) == []
        await p.contribute("a", 0, weight=7.0)
        assert p.row(contributions.c.weight) == [7.0]

    party(test)


def test_what_a_node_is_busy_with_comes_first_as_long_as_it_is_awaited(party: Callable[[Any], None]) -> None:
    async def test(p: Party) -> None:
        await p.start()
        first = await p.work("a")
        assert isinstance(first, Train) and 0 < first.left_s <= p.plan.round.deadline_s
        p.plan = msgspec.structs.replace(p.plan, name="another")
        await p.start()
        busy = Pending(run=first.run, round=0)
        await p.until(lambda: sum(run.state == "training" for run in p.studies.open_runs()) == 2)
        for _ in range(2):
            _, again = await p.studies.work("a", [], 0.0, busy)
            assert isinstance(again, Train) and (again.run, again.round) == (first.run, 0)
        assert (await p.work("a")).run != first.run
        for node in ("a", "b"):
            await p.contribute(node, 0)
        _, other = await p.studies.work("a", [], 30.0, busy)
        assert other is not None and (other.run, other.round) != (first.run, 0)

    party(test)


def test_a_stored_contribution_that_cannot_be_read_ends_the_study(
    party: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", 0)

    def broken(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def test(p: Party) -> None:
        p.spooled = True
        await p.start()
        await p.train("a", 0)
        monkeypatch.setattr(intake_module, "fold", broken)
        with pytest.raises(StoreError, match="cannot be read"):
            await p.train("b", 0)
        assert p.row(studies.c.state) == ["failed"]
        assert "Input/output" in p.row(studies.c.reason)[0]
        assert not p.studies.open_runs()

    party(test)


def test_a_request_that_is_cut_while_it_is_added_to_the_sum_leaves_the_sum_whole(
    party: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a coordinator that stops: a round may still close meanwhile."""
    monkeypatch.setattr("freehold.coordinator.store.INLINE_BYTES", 0)
    fold, begun, go = intake_module.fold, threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        begun.set()
        assert go.wait(60)
        fold(*args)

    monkeypatch.setattr(intake_module, "fold", slow)

    async def test(p: Party) -> None:
        p.spooled = True
        await p.start()
        first = asyncio.create_task(p.train("a", 0))
        await p.until(begun.is_set)
        (run,) = p.studies.open_runs()
        second = asyncio.create_task(p.train("b", 0))
        await p.until(lambda: "b" in run.weights)
        for task in (second, first):
            task.cancel()
        await asyncio.wait([second])
        assert run.folding.locked() and not first.done(), "a thread still adds to it"
        assert "b" not in run.weights, "it is not in the sum"
        go.set()
        await asyncio.wait([first])
        assert first.cancelled() and second.cancelled()
        assert run.tally is not None and run.tally.sum.heard == 1 and run.weights.keys() == {"a"}
        await p.contribute("b", 0)
        await p.until(lambda: run.round == 1)
        assert p.row(rounds.c.heard, rounds.c.round == 0) == [2]

    party(test)


@pytest.mark.parametrize("examples", [200_000, 10**15])
def test_a_plan_that_needs_huge_mock_data_is_refused_with_a_number(party: Callable[[Any], None], examples: int) -> None:
    async def test(p: Party) -> None:
        with pytest.raises(StudyRefused, match="made-up data") as caught:
            await p.studies.start(dumps(msgspec.structs.replace(p.plan, name="huge", min_examples=examples)))
        assert "Lower min_examples to 178571" in caught.value.hint
        await p.start()

    party(test)
