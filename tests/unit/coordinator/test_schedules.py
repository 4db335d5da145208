"""Studies that keep learning: cycles begin on time, once, together, from the states where they were."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.coordinator.administration import results
from freehold.coordinator.blobs import Folder
from freehold.coordinator.schedules import schedule_of
from freehold.coordinator.store import connect
from freehold.coordinator.studies import Studies
from freehold.coordinator.study_tables import rounds, runs, studies
from freehold.errors import StudyRefused
from freehold.plan import Plan, dumps
from freehold.study.federated import federated_plan
from freehold.wire.messages import Measure, Measures, Train
from tests.unit.coordinator.test_rounds import Denying, Gated, Party, live
from tests.warm import specified

ROUNDS, DAY_S = 2, 86400.0


@pytest.fixture(scope="module")
def plan() -> Plan:
    return specified(federated_plan("heart", "fedavg", companions=["fedprox"], rounds=ROUNDS))


@pytest.fixture(scope="module")
def code() -> Iterator[Gated]:
    found = Gated()
    yield found
    found.end()


class Clocked(Party):
    """A party whose clock stands still until it is moved."""

    def __init__(self, folder: Path, plan: Plan, code: Gated) -> None:
        super().__init__(folder, plan, code)
        self.folder, self.now = folder, 1e6
        self.open()

    def open(self) -> None:
        self.store = Denying(connect(f"sqlite:///{self.folder / 'coordinator.sqlite'}"), Folder(self.folder / "blobs"))
        self.studies = Studies(
            self.store, self.code, lambda dataset, connected: self.nodes, clock=lambda: self.now, tell=self.events.append
        )

    async def restart(self) -> None:
        await self.close()
        self.open()
        await self.studies.recover()

    async def cycle(self, number: int, *, trained: dict[str, list[tuple[str, int]]] | None = None) -> None:
        """All nodes do all the work of a cycle."""
        await asyncio.gather(*(self.work_off(node, number, trained) for node in self.nodes))
        await self.until(lambda: all(s == "resting" for s in self.row(runs.c.state)))

    async def work_off(self, node: str, number: int, trained: dict[str, list[tuple[str, int]]] | None) -> None:
        first = number * (ROUNDS + 1)
        measured = 0
        while measured < 2:
            work = await self.work(node)
            if isinstance(work, Train):
                assert first <= work.round < first + ROUNDS
                if trained is not None:
                    trained.setdefault(node, []).append((work.run, work.round))
                self.run = next(r.run for r in self.studies.open_runs() if r.id == work.run)
                await self.contribute_to(node, work.run, work.round)
            else:
                assert isinstance(work, Measure) and work.round == first + ROUNDS
                await self.measured(node, work)
                measured += 1

    async def contribute_to(self, node: str, run: str, round: int) -> None:
        sha256 = hashlib.sha256(self.body).hexdigest()
        await self.studies.intake.contribute(node, run, round, weight=1.0, sha256=sha256, body=self.body)

    async def measured(self, node: str, work: Measure) -> None:
        await self.studies.measured(node, Measures(run=work.run, round=work.round, splits={}))

    def told(self, name: str) -> list[dict[str, object]]:
        return [dict(event.fields) for event in self.events if event.name == name]


@pytest.fixture
def party(tmp_path: Path, plan: Plan, code: Gated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    monkeypatch.setattr("freehold.coordinator.steps.RETRY_S", 0.01)

    yield lambda test: live(lambda: Clocked(tmp_path, plan, code), test)


async def start(p: Clocked, **schedule: Any) -> str:
    return await p.studies.start(dumps(p.plan), **schedule)


def test_a_study_rests_and_trains_on_when_it_is_time(party: Callable[[Any], None]) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S)
        await p.cycle(0)
        assert p.told("cycle.finished") == [{"study": study, "cycle": 0}]
        assert p.row(studies.c.state) == ["running"]
        await p.studies.advance()
        p.now += DAY_S - 1
        await p.studies.advance()
        assert {r.state for r in p.studies.open_runs()} == {"resting"} and not p.told("cycle.begun"), "a second too early"
        before = [r.server for r in p.studies.open_runs()]
        p.nodes = ["a", "b", "newcomer"]
        p.now += 1
        await p.studies.advance()
        trained: dict[str, list[tuple[str, int]]] = {}
        await p.cycle(1, trained=trained)
        assert p.told("cycle.begun") == [{"study": study, "cycle": 1}]
        both = [r.id for r in p.studies.open_runs()]
        assert all(sorted(done) == sorted((run, i) for run in both for i in (3, 4)) for done in trained.values())
        assert trained.keys() == {"a", "b", "newcomer"}
        assert sorted(p.row(rounds.c.round)) == sorted([0, 1, 2, 3, 4, 5] * 2)
        assert p.row(rounds.c.heard, rounds.c.round == 4) == [3, 3]
        assert before == [r.server for r in p.studies.open_runs()], "from the states where they were: they sent zeros"

    party(test)


def test_after_the_last_cycle_it_is_finished(party: Callable[[Any], None]) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S, times=2)
        await p.cycle(0)
        p.now += DAY_S
        await p.studies.advance()
        await asyncio.gather(*(p.work_off(node, 1, None) for node in p.nodes))
        await p.until(lambda: not p.studies.open_runs())
        assert p.row(studies.c.state) == ["finished"] and p.row(runs.c.state) == ["finished"] * 2
        assert p.told("study.finished") == [{"study": study}]
        for cycle in (0, 1):
            found = p.store.read(lambda c, cycle=cycle: results(c, p.store, study, cycle))
            assert {len(told) for told in found.measures.values()} == {2} and len(found.measures) == 2
            assert {r.round for r in found.rounds} == {3 * cycle, 3 * cycle + 1, 3 * cycle + 2}
            assert [(c.index, c.measured) for c in found.cycles] == [(0, 2), (1, 2)]
        assert p.store.read(lambda c: results(c, p.store, study)).cycle == 1, "the last one, if none is asked for"

    party(test)


def test_a_coordinator_that_was_down_begins_once(party: Callable[[Any], None]) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S)
        await p.cycle(0)
        await p.restart()
        assert {(r.state, r.round) for r in p.studies.open_runs()} == {("resting", ROUNDS)}
        p.now += 10 * DAY_S
        await p.restart()
        await p.until(lambda: all(r.state == "training" for r in p.studies.open_runs()))
        await p.restart()  # in the middle of it
        await p.cycle(1)
        await p.studies.advance()
        assert {r.state for r in p.studies.open_runs()} == {"resting"}
        assert p.told("cycle.begun") == [{"study": study, "cycle": 1}], "ten were missed, one is done"
        found = p.store.read(lambda c: schedule_of(c, study))
        assert found is not None and (found.cycle, found.due) == (1, p.now + DAY_S)

    party(test)


@pytest.mark.parametrize("point", ["coordinator.cycle", "coordinator.round", "coordinator.run_ended"])
def test_what_the_store_kept_and_denied_is_done_once(party: Callable[[Any], None], point: str) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S)
        if point == "coordinator.run_ended":
            p.store.denied = point
        await p.cycle(0)
        await p.until(lambda: {r.state for r in p.studies.open_runs()} == {"resting"})
        if point != "coordinator.run_ended":
            p.store.denied = point
        p.now += DAY_S
        await p.studies.advance()
        await p.cycle(1)
        assert not p.store.denied, "the point was reached"
        found = p.store.read(lambda c: schedule_of(c, study))
        assert found is not None and found.cycle == 1
        assert p.row(rounds.c.heard, rounds.c.round.in_([0, 1, 3, 4])) == [2] * 8

    party(test)


def test_a_study_that_is_stopped_while_it_rests_does_not_begin_again(party: Callable[[Any], None]) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S)
        await p.cycle(0)
        await p.studies.stop(study, "enough")
        p.now += DAY_S
        await p.studies.advance()
        await p.restart()
        assert not p.studies.open_runs() and not p.told("cycle.begun")
        assert p.row(studies.c.state) == ["stopped"] and set(p.row(runs.c.state)) == {"stopped"}

    party(test)


def test_another_schedule_for_the_same_plan_is_refused(party: Callable[[Any], None]) -> None:
    async def test(p: Clocked) -> None:
        study = await start(p, every_s=DAY_S, times=3)
        assert await start(p, every_s=DAY_S, times=3) == study
        for other in ({}, {"every_s": 2 * DAY_S, "times": 3}, {"every_s": DAY_S}):
            with pytest.raises(StudyRefused, match="another schedule"):
                await start(p, **other)

    party(test)


def test_the_timer_looks_at_the_clock_again(monkeypatch: pytest.MonkeyPatch, party: Callable[[Any], None]) -> None:
    """Nobody calls `advance`: no node connects, no operator asks."""
    monkeypatch.setattr("freehold.coordinator.schedules.LOOK_S", 0.01)

    async def test(p: Clocked) -> None:
        await start(p, every_s=DAY_S)
        await p.cycle(0)
        p.now += DAY_S
        await p.until(lambda: all(r.state == "training" for r in p.studies.open_runs()))

    party(test)
