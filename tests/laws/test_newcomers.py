"""A client that never took part gets a model by the same calls as everybody else, before and after training."""

from __future__ import annotations

from freehold.core import is_finite
from freehold.engines import LoopEngine, VectorEngine
from tests.laws.cases import COHORT, WORK, case, over_all
from tests.problems import CLIENTS, distance, feed_for, shapes

NEWCOMERS = CLIENTS[5:8]


@over_all
def test_newcomers_are_served_before_the_first_round_and_after_the_last(name: str) -> None:
    now = case(name)
    for server in (now.first, now.server):
        shared = now.algorithm.broadcast(server)
        loop, vector = (e(now.algorithm, feed_for("mixed"), WORK) for e in (LoopEngine, VectorEngine))
        said = loop.predict(shared, NEWCOMERS, ["test"])
        assert all(is_finite(outputs) and outputs["test"].shape[0] == 3 for outputs in said.values())
        assert distance(said, vector.predict(shared, NEWCOMERS, ["test"])) < 1e-9
        assert not loop.store.committed() and not vector.store.committed()


@over_all
def test_a_newcomer_starts_with_a_state_of_everybodys_shape(name: str) -> None:
    now = case(name)
    assert shapes(now.algorithm.enroll(now.shared)) == shapes(now.personal[COHORT[0]])


@over_all
def test_a_newcomer_can_join_late(name: str) -> None:
    now = case(name)
    engine = LoopEngine(now.algorithm, feed_for("mixed"), WORK)
    tally = engine.collect(now.round, now.shared, NEWCOMERS)
    after = now.algorithm.server_update(now.round, now.server, tally.mean())
    assert is_finite(after) and shapes(after) == shapes(now.server)
