"""What other coordinators write while this one is in the middle of something: counted once, in the right round."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from freehold.coordinator import study_records as records
from freehold.coordinator.lease import Superseded
from freehold.coordinator.replicas import Replicas
from freehold.coordinator.run import OpenRun
from freehold.coordinator.store import in_row
from freehold.coordinator.study_tables import contributions, rounds
from freehold.events import Event
from freehold.plan import Plan, RoundPolicy
from tests.unit.coordinator.test_rounds import Gated, Party, code, live, plan  # noqa: F401 - fixtures


async def elsewhere(party: Party, node: str, round: int) -> None:
    """Another coordinator takes a node's contribution."""
    put = in_row(party.body)
    assert put.sha256 == hashlib.sha256(party.body).hexdigest()
    arrived = records.Arrived(party.run.id, round, node, put, 1.0, 1.0, round)
    await party.store.write(lambda c: records.insert_contributions(c, [arrived]), "test")


def test_what_is_taken_elsewhere_while_a_round_closes_is_in_its_sum(
    tmp_path: Path,
    plan: Plan,  # noqa: F811
    code: Gated,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    close_round = code.close_round

    def counting(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["heard"])
        return close_round(*args, **kwargs)

    monkeypatch.setattr(code, "close_round", counting)

    async def test(party: Party) -> None:
        await party.start()
        await party.train("a", 0)
        run = party.studies.open_runs()[0]
        party.code.let.clear()
        run.deadline = 0.0
        party.studies._rounds.consider(run)
        await party.code.asked.wait()
        await elsewhere(party, "b", 0)
        heard = asyncio.create_task(party.studies.changed("contribution", [run.id, "0", "b"]))
        await asyncio.sleep(0)
        party.code.let.set()
        await heard
        await party.until(lambda: run.round == 1)
        assert asked == [1, 2], "the close that lacked b was done again"
        assert party.row(rounds.c.weight, rounds.c.round == 0) == [2.0]
        assert party.row(contributions.c.counted, contributions.c.round == 0) == [True, True]
        assert run.received == {} and run.weights == {}, "nothing of it is in the next round"

    quick = msgspec.structs.replace(plan, round=RoundPolicy(quorum=1, least_nodes=2))
    live(lambda: Party(tmp_path, quick, code), test)


def test_an_old_row_is_not_added_to_the_round_that_is_open_by_then(tmp_path: Path, plan: Plan, code: Gated) -> None:  # noqa: F811
    async def test(party: Party) -> None:
        await party.start()
        await party.work("a")
        await elsewhere(party, "b", 0)
        run = party.studies.open_runs()[0]
        old = party.store.read(lambda c: records.received(c, run.id, 0))
        await party.studies.changed("contribution", [run.id, "0", "b"])
        await party.train("a", 0)
        await party.until(lambda: run.round == 1)
        await party.studies._rounds.take(run, old[0])
        assert run.received == {} and run.weights == {}
        assert run.tally is not None and run.tally.sum.heard == 0

    live(lambda: Party(tmp_path, plan, code), test)


def test_a_run_whose_beginning_was_given_up_can_begin_again(tmp_path: Path, plan: Plan, code: Gated) -> None:  # noqa: F811
    async def test(party: Party) -> None:
        party.nodes = []
        await party.start()
        run = party.studies.open_runs()[0]
        run.closing = True  # as after a lease that was lost in the middle of `_begin`
        party.nodes = ["a", "b"]
        await party.studies.recover()
        await party.until(lambda: run.state == "training")

    live(lambda: Party(tmp_path, plan, code), test)


@pytest.mark.parametrize("error", [Superseded(), RuntimeError(), AssertionError()])
def test_nothing_that_is_raised_ends_the_following(error: Exception) -> None:
    async def scenario() -> None:
        told: list[Event] = []
        followed: list[str] = []

        async def changed(kind: str, words: list[str]) -> None:
            followed.append(kind)
            if kind == "round":
                raise error

        async def catch_up() -> None:
            followed.append("everything")

        studies = SimpleNamespace(changed=changed, catch_up=catch_up)
        replicas = Replicas(*cast("tuple[Any, ...]", (None, None, studies, None, None)), tell=told.append)
        task = asyncio.create_task(replicas._follow())
        for kind in ("round", "contribution"):
            replicas._put(kind, ["run", "0"])
        async with asyncio.timeout(60):
            while followed[-1:] != ["contribution"]:
                await asyncio.sleep(0)
        assert followed == ["round", "everything", "contribution"] and not task.done()
        assert bool(told) != isinstance(error, Superseded)
        task.cancel()

    asyncio.run(scenario())


def test_who_recovers_sums_what_is_stored(tmp_path: Path, plan: Plan, code: Gated) -> None:  # noqa: F811
    """A coordinator that comes back sums what is stored, before anybody is asked again."""

    async def test(party: Party) -> None:
        await party.start()
        await party.work("a")
        await elsewhere(party, "b", 0)
        await party.studies.recover()
        run = party.studies.open_runs()[0]
        assert isinstance(run, OpenRun) and run.tally is not None
        assert run.received.keys() == run.weights.keys() == {"b"} and run.tally.sum.heard == 1

    live(lambda: Party(tmp_path, plan, code), test)


def test_who_leads_does_not_build_its_sums_anew_because_somebody_asks(tmp_path: Path, plan: Plan, code: Gated) -> None:  # noqa: F811
    async def test(party: Party) -> None:
        digest = await party.start()
        await party.train("a", 0)
        run = party.studies.open_runs()[0]
        tally = run.tally
        assert not party.studies.intake.shows("a", "0" * 64)
        await party.studies.changed("study", [digest])  # started once more, elsewhere
        assert run.tally is tally and run.weights.keys() == {"a"}
        await party.studies.stop(digest, "enough")
        await party.studies.changed("study", [digest])
        assert party.studies.open_runs() == []

    live(lambda: Party(tmp_path, plan, code), test)


def test_a_close_that_was_begun_again_leaves_the_next_round_alone(
    tmp_path: Path,
    plan: Plan,  # noqa: F811
    code: Gated,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lease was lost and got back while the child was asked, so the round that is being closed is taken up once more."""
    go = asyncio.Event()

    async def slow(run: OpenRun) -> None:
        await go.wait()

    async def test(party: Party) -> None:
        await party.start()
        await party.train("a", 0)
        run, rounds_ = party.studies.open_runs()[0], party.studies._rounds
        party.code.let.clear()
        await party.train("b", 0)
        await party.code.asked.wait()
        monkeypatch.setattr(rounds_, "catch_up", slow)
        party.studies._look_up(run)
        rounds_.consider(run)
        party.code.let.set()
        await party.until(lambda: run.round == 1)
        go.set()
        await party.until(lambda: not rounds_._steps._tasks)
        assert not [event for event in party.events if event.name in ("study.failed", "coordinator.error")]
        assert party.row(rounds.c.heard) == [2, None] and run.awaits("a")

    live(lambda: Party(tmp_path, plan, code), test)
