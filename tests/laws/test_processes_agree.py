"""Law 5 again: one process or several give the same server, personal states and predictions, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from freehold.core import Algorithm
from freehold.engines import Feed, LoopEngine, Processes, VectorEngine, Work
from tests.laws.cases import build, over_all, task_of
from tests.laws.test_engines_agree import Outcome, outcome
from tests.problems import CLIENTS, distance, feed_for

WORK = Work(batch_size=4, epochs=1)


class Built:
    """How a worker builds its engine."""

    def __init__(self, name: str, engine: type[LoopEngine], single: bool = False) -> None:
        self.name, self.engine, self.single = name, engine, single

    def algorithm(self) -> Algorithm:
        return build(self.name, task_of("mixed"))

    def __call__(self, feed: Feed) -> LoopEngine:
        return self.engine(self.algorithm(), feed, WORK)


@pytest.fixture(scope="module")
def crews() -> Iterator[dict[int, Processes]]:
    found = {places: Processes(places) for places in (1, 2, 3)}
    yield found
    for crew in found.values():
        crew.close()


@over_all
def test_the_number_of_processes_does_not_matter(name: str, crews: dict[int, Processes]) -> None:
    feed = feed_for("mixed")
    here = Built(name, VectorEngine)(feed)
    asked = {"clients": CLIENTS[:7], "rounds": 2, "cohort": 5}
    expected = outcome(here.algorithm, here, **asked)
    for places, crew in crews.items():
        there = crew.engine(here.algorithm, feed, Built(name, VectorEngine))
        found = outcome(here.algorithm, there, **asked)
        for part, a, b in zip(Outcome._fields, expected, found, strict=True):
            assert distance(a, b) < 1e-9, (part, places)
