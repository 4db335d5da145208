"""Law 5 again: whatever the number of processes, the server, personal states and predictions are the same, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from freehold.engines import Feed, LoopEngine, Processes, ShardedEngine, VectorEngine, Work
from tests.laws.cases import build, over_all, task_of
from tests.laws.test_engines_agree import Outcome, outcome
from tests.problems import CLIENTS, distance, feed_for

WORK = Work(batch_size=4, epochs=1)


def built(name: str, engine: type[LoopEngine], feed: Feed) -> LoopEngine:
    """What a worker builds."""
    return engine(build(name, task_of("mixed")), feed, WORK)


@pytest.fixture(scope="module")
def crews() -> Iterator[dict[int, Processes]]:
    found = {places: Processes(places) for places in (1, 2, 3)}
    yield found
    for crew in found.values():
        crew.close()


def check(name: str, crew: Processes, kind: type[LoopEngine]) -> None:
    feed, algorithm = feed_for("mixed"), build(name, task_of("mixed"))

    def found(engine: LoopEngine | ShardedEngine) -> Outcome:
        return outcome(algorithm, engine, clients=CLIENTS[:6], rounds=2, cohort=4)

    there = crew.engine(algorithm, feed, partial(built, name, kind))
    for part, a, b in zip(Outcome._fields, found(kind(algorithm, feed, WORK)), found(there), strict=True):
        assert distance(a, b) < 1e-9, (part, crew.places)


@over_all
def test_two_processes_give_what_one_gives(name: str, crews: dict[int, Processes]) -> None:
    check(name, crews[2], LoopEngine)


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("name", ["scaffold", "ditto"])
def test_neither_the_number_of_processes_nor_their_engine_matters(name: str, places: int, crews: dict[int, Processes]) -> None:
    check(name, crews[places], VectorEngine)
