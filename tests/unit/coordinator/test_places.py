"""Who has a place in the sum of a round: never more than it has room for, and what such a round comes to where nothing weighs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from freehold.coordinator.restore import restore
from freehold.coordinator.study_tables import contributions, rounds, runs
from freehold.errors import WeightRefused
from freehold.plan import runs_of
from freehold.wire.messages import Declined
from tests.unit.coordinator.test_rounds import Gated, Party, code, party, plan  # noqa: F401 - fixtures


def of_one(p: Party, **training: Any) -> None:
    """The plan asks one node a round."""
    policy = msgspec.structs.replace(p.plan.round, cohort=1)
    p.plan = msgspec.structs.replace(p.plan, round=policy, training=msgspec.structs.replace(p.plan.training, **training))
    p.run = runs_of(p.plan)[0]


async def at_the_store(p: Party, node: str, round: int, do: Callable[[], Any]) -> None:
    """Contribute, and do something when the contribution is on its way into the store."""
    written = p.store.write_alike
    done = False

    async def meanwhile(work: Any, item: Any, point: str) -> Any:
        nonlocal done
        if point == "coordinator.contribution" and not done:
            done = True
            await do()
        return await written(work, item, point)

    p.store.write_alike = meanwhile  # type: ignore[method-assign]
    try:
        await p.contribute(node, round)
    finally:
        p.store.write_alike = written  # type: ignore[method-assign]
    assert done


@pytest.mark.parametrize("how", ["rests", "declines"])
def test_nobody_else_is_asked_in_the_place_of_who_is_being_entered(party: Callable[[Any], None], how: str) -> None:  # noqa: F811
    async def test(p: Party) -> None:
        of_one(p)
        await p.start()
        await p.until(lambda: bool(p.studies.open_runs()[0].cohort))
        (run,) = p.studies.open_runs()
        (asked,) = run.cohort
        (other,) = {*p.nodes} - {asked}

        async def go() -> None:
            p.nodes.remove(asked)
            if how == "rests":
                await p.studies.offered(asked, {"heart"})
            else:
                await p.studies.measured(asked, Declined(run=run.id, round=0, code=320, message="no"))
            assert run.cohort == ()
            run.deadline = 0.0
            p.studies._rounds.consider(run)
            await p.studies.advance()
            await asyncio.gather(*p.studies._rounds._steps._tasks)
            assert not run.cohort or run.cohort == (asked,), "its place is taken"

        await at_the_store(p, asked, 0, go)
        await p.until(lambda: run.round == 1)
        assert p.row(contributions.c.node) == [asked]
        assert p.row(rounds.c.heard, rounds.c.round == 0) == [1]
        await p.train(other, 1)

    party(test)


def test_another_is_asked_when_what_was_being_entered_is_refused(
    party: Callable[[Any], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(p: Party) -> None:
        monkeypatch.setattr("freehold.coordinator.run.OpenRun.is_heavy", lambda self, body: True)
        of_one(p, most_weight=7)
        await p.start()
        await p.until(lambda: bool(p.studies.open_runs()[0].cohort))
        (run,) = p.studies.open_runs()
        (asked,) = run.cohort
        (other,) = {*p.nodes} - {asked}
        sending = asyncio.create_task(p.contribute(asked, 0, weight=8.0))
        await asyncio.sleep(0)
        p.nodes.remove(asked)
        await p.studies.offered(asked, {"heart"})
        with pytest.raises(WeightRefused):
            await sending
        await p.train(other, 0)
        await p.until(lambda: run.round == 1)

    party(test)


def test_a_round_in_which_nothing_weighs_leaves_the_shared_parameters_as_they_were(party: Callable[[Any], None]) -> None:  # noqa: F811
    async def test(p: Party) -> None:
        await p.start()
        await p.until(lambda: bool(p.studies.open_runs()[0].cohort))
        before = p.row(runs.c.shared)
        for node in ("a", "b"):
            await p.work(node)
            await p.contribute(node, 0, weight=0.0)
        await p.until(lambda: not p.studies.open_runs() or p.studies.open_runs()[0].round == 1)
        assert p.row(runs.c.shared) == before and p.row(runs.c.state) == ["training"]
        assert p.row(contributions.c.counted) == [True, True]
        for node in ("a", "b"):
            await p.train(node, 1)

    party(test)


def test_a_round_is_restored_without_a_look_into_what_was_contributed(party: Callable[[Any], None]) -> None:  # noqa: F811
    async def test(p: Party) -> None:
        await p.start()
        await p.train("a", 0)
        (run,) = p.studies.open_runs()
        asked: list[str] = []
        sa.event.listen(p.store.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
        restore(p.store, run)
        assert run.received == {"a": hashlib.sha256(p.body).hexdigest()}
        assert any("FROM contributions" in each for each in asked)
        assert not any("contributions.body" in each for each in asked), "a thousand of them would be read on the event loop"

    party(test)
