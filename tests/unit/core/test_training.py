"""Rounds: who is asked, what an interrupted run goes on from, and what is left when a round fails."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from freehold.core import Algorithm, ClientResult, Round, Steps, Tree, algorithm_entry, train
from freehold.drawing import draw_cohort
from freehold.engines import Feed, LoopEngine, VectorEngine, Work
from freehold.errors import Diverged, UsageError
from tests.problems import CLIENTS, distance, feed_for, plain, same

TASK = plain()
WORK = Work(batch_size=4, epochs=1)
ENGINES = [LoopEngine, VectorEngine]
both = pytest.mark.parametrize("engine", ENGINES)


def algorithm(name: str = "ditto", **settings: float | str) -> Algorithm:
    return algorithm_entry(name).build(TASK, **settings)


# Who is asked.


def test_a_cohort_is_the_same_on_every_machine() -> None:
    assert draw_cohort(CLIENTS, 4, seed=0, index=0) == ["c1", "c2", "c8", "c10"]
    assert draw_cohort(CLIENTS, 4, seed=0, index=1) == ["c0", "c1", "c2", "c3"]
    assert draw_cohort(CLIENTS, 4, seed=1, index=0) == ["c4", "c5", "c7", "c11"]


def test_a_cohort_is_drawn_without_replacement_in_the_order_of_the_clients() -> None:
    for index in range(50):
        cohort = draw_cohort(CLIENTS, 5, seed=3, index=index)
        assert len(set(cohort)) == 5 and cohort == [c for c in CLIENTS if c in cohort]
    assert draw_cohort(CLIENTS, len(CLIENTS), seed=3, index=0) == list(CLIENTS)


def test_everybody_is_asked_about_equally_often() -> None:
    asked = Counter(c for index in range(1200) for c in draw_cohort(CLIENTS, 3, seed=5, index=index))
    assert all(abs(asked[c] - 300) < 4 * math.sqrt(1200 * 0.25 * 0.75) for c in CLIENTS)


@pytest.mark.parametrize("size", [-1, 0, 13])
def test_a_cohort_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="there are 12 clients"):
        draw_cohort(CLIENTS, size, seed=0, index=0)
    with pytest.raises(UsageError):
        next(train(algorithm(), LoopEngine(algorithm(), feed_for(), WORK), CLIENTS, rounds=1, cohort=size))


@both
def test_a_report_says_which_round_and_how_many_were_heard(engine: type[LoopEngine]) -> None:
    reports = list(train(algorithm(), engine(algorithm(), feed_for(), WORK), CLIENTS[:5], rounds=3, cohort=2))
    assert [r.round for r in reports] == [Round(i, 2, 5) for i in range(3)]
    moved = {k: reports[0].server[k] - TASK.init[k] for k in TASK.init}
    assert distance(reports[0].mean, moved) < 1e-12


@both
def test_metrics_are_averaged_by_weight(engine: type[LoopEngine]) -> None:
    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        return ClientResult({}, personal, {"examples": steps.present.sum().double()})

    counting = replace(algorithm("local"), client_update=client_update)
    (report,) = train(counting, engine(counting, feed_for(), WORK), CLIENTS[:3], rounds=1)
    assert math.isclose(float(report.metrics["examples"]), (5 * 5 + 2 * 2 + 9 * 9) / 16)


# Going on.


@both
@pytest.mark.parametrize(
    ("name", "settings"), [("scaffold", {}), ("apfl", {}), ("local", {"optimizer": "adam"}), ("fedadam", {})]
)
@pytest.mark.parametrize("work", [Work(batch_size=4, steps=3, continuing=True)])
def test_an_interrupted_run_goes_on_to_the_same_result_bit_for_bit(
    engine: type[LoopEngine], name: str, settings: dict[str, str], work: Work
) -> None:
    chosen, clients = algorithm(name, **settings), CLIENTS[:5]
    whole = engine(chosen, feed_for(), work)
    *_, expected = train(chosen, whole, clients, rounds=4, cohort=3, seed=8)
    first = engine(chosen, feed_for(), work)
    *_, halfway = train(chosen, first, clients, rounds=2, cohort=3, seed=8)
    second = engine(chosen, feed_for(), work)
    second.store.restore(first.store.committed())
    *_, end = train(chosen, second, clients, rounds=4, cohort=3, seed=8, server=halfway.server, start=2)
    assert end.round == expected.round and same(end.server, expected.server)
    assert same(dict(second.store.committed()), dict(whole.store.committed()))


def test_nothing_is_left_to_do_after_the_last_round() -> None:
    assert list(train(algorithm(), LoopEngine(algorithm(), feed_for(), WORK), CLIENTS, rounds=2, start=2)) == []


def test_a_caller_may_stop_between_rounds_and_what_counted_is_kept() -> None:
    engine = LoopEngine(algorithm(), feed_for(), WORK)
    for report in train(algorithm(), engine, CLIENTS[:2], rounds=100):
        if report.round.index == 1:
            break
    assert set(engine.store.committed()) == set(CLIENTS[:2])


# When a round fails.


def with_nan(client: str) -> Feed:
    """The data with one value missing, in the training rows of one client."""
    feed = feed_for()
    x = feed.x.clone()
    x[feed.rows[client]["train"][0], 0] = torch.nan
    return replace(feed, x=x)


@both
@pytest.mark.parametrize("broken", [CLIENTS[0], CLIENTS[2]])
def test_a_client_that_diverges_is_named_with_the_round(engine: type[LoopEngine], broken: str) -> None:
    clients = CLIENTS[:4]
    seed = next(
        s
        for s in range(99)
        if broken not in draw_cohort(clients, 2, seed=s, index=0) and broken in draw_cohort(clients, 2, seed=s, index=1)
    )
    chosen = algorithm()
    runner = engine(chosen, with_nan(broken), WORK)
    rounds = train(chosen, runner, clients, rounds=5, cohort=2, seed=seed)
    good = next(rounds)
    kept = dict(runner.store.committed())
    with pytest.raises(Diverged, match=rf"Round 1, client {broken}: the contribution of ditto") as stopped:
        next(rounds)
    assert "learning rate" in stopped.value.hint
    assert set(kept) == set(draw_cohort(clients, 2, seed=seed, index=0)) and good.round.index == 0
    assert same(dict(runner.store.committed()), kept), "the states of the round before are kept, and no others"


@both
def test_a_personal_state_that_diverges_is_named_too(engine: type[LoopEngine]) -> None:
    chosen = algorithm("local")
    with pytest.raises(Diverged, match=r"Round 0, client c2: the personal state of local"):
        next(train(chosen, engine(chosen, with_nan(CLIENTS[2]), WORK), CLIENTS[:4], rounds=1))


@both
def test_a_server_that_diverges_is_named_and_the_round_does_not_count(engine: type[LoopEngine]) -> None:
    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        return server if round.index == 0 else {k: t / 0 for k, t in server.items()}

    chosen = replace(algorithm(), server_update=server_update)
    runner = engine(chosen, feed_for(), WORK)
    rounds = train(chosen, runner, CLIENTS[:2], rounds=3)
    next(rounds)
    kept = dict(runner.store.committed())
    with pytest.raises(Diverged, match="Round 1: the server state of ditto"):
        next(rounds)
    assert same(dict(runner.store.committed()), kept)


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_stops_a_round_its_states_are_dropped(engine: type[LoopEngine], error: type[BaseException]) -> None:
    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        raise error

    chosen = replace(algorithm(), server_update=server_update)
    runner = engine(chosen, feed_for(), WORK)
    with pytest.raises(error):
        next(train(chosen, runner, CLIENTS[:2], rounds=1))
    assert runner.store.committed() == {}
    runner.settle(counted=True)
    assert runner.store.committed() == {}, "nothing is pending either"
