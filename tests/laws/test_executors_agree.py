"""Law 5 for executors: by whichever rule a cohort descends, what a run leaves is what the loop leaves, up to rounding."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.core import Executor, executing, train
from freehold.core.cohort import dense
from freehold.engines import LoopEngine, VectorEngine, Work
from tests.laws.cases import over_all
from tests.laws.test_engines_agree import Outcome, built, outcome
from tests.problems import CLIENTS, PROBLEMS, distance, feed_for

TOLERANCE = 1e-9


class ByRule(VectorEngine):
    """The vector engine, with the rules of an executor in force."""

    executor: Executor = "vmap"

    def _run(self, *args: Any) -> Any:
        with executing(self.executor):
            return dense(super()._run(*args))


def by_rule(executor: Executor, *args: Any, **kwargs: Any) -> ByRule:
    engine = ByRule(*args, **kwargs)
    engine.executor = executor
    return engine


@over_all
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("executor", ["stacked", "lowrank"])
def test_executors_agree_with_the_loop(executor: Executor, problem: str, name: str) -> None:
    algorithm = built(name, problem)
    if algorithm is None:
        return
    feed, work = feed_for(problem), Work(batch_size=4, epochs=1)
    asked = {"clients": CLIENTS[:5], "rounds": 2 if problem == "mixed" else 1, "cohort": 3}
    loop = outcome(algorithm, LoopEngine(algorithm, feed, work), **asked)
    ruled = outcome(algorithm, by_rule(executor, algorithm, feed, work, chunk=3), **asked)
    for part, a, b in zip(Outcome._fields, loop, ruled, strict=True):
        assert distance(a, b) < TOLERANCE, part


@pytest.mark.parametrize("executor", ["stacked", "lowrank"])
@pytest.mark.parametrize("name", ["ditto", "fedrep", "scaffold", "pfedme"])
def test_the_size_of_a_chunk_does_not_matter(name: str, executor: Executor) -> None:
    algorithm, feed, work = built(name, "mixed"), feed_for("mixed"), Work(batch_size=4, epochs=2)
    assert algorithm is not None
    servers = [
        list(train(algorithm, by_rule(executor, algorithm, feed, work, chunk=chunk), CLIENTS[:7], rounds=1))[-1].server
        for chunk in (2, 64)
    ]
    assert distance(*servers) < TOLERANCE
