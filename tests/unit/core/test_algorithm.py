"""The tally, which is a commutative monoid, and what an algorithm does by default."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freehold.core import Algorithm, ClientResult, Round, Tally, Tree
from freehold.errors import SimulationError
from tests.problems import distance, plain, same


def tree(seed: int) -> Tree:
    rng = torch.Generator().manual_seed(seed)
    return {
        "model": {"w": torch.randn(3, 2, generator=rng, dtype=torch.float64)},
        "count": torch.randn(2, generator=rng).double(),
    }


def result(seed: int) -> ClientResult:
    return ClientResult(tree(seed), {}, {"loss": torch.tensor(float(seed))})


TALLIES = st.builds(lambda seed, weight: Tally.of(result(seed), weight), st.integers(0, 50), st.floats(0.5, 50))


def close(a: Tally, b: Tally) -> bool:
    sums = distance(a.total, b.total) < 1e-9 and distance(a.metrics, b.metrics) < 1e-3
    return sums and abs(a.weight - b.weight) < 1e-9 and a.clients == b.clients


@given(TALLIES, TALLIES, TALLIES)
def test_a_tally_is_a_commutative_monoid_up_to_rounding(a: Tally, b: Tally, c: Tally) -> None:
    zero = Tally.of(result(0), 0.0)
    assert close((a + b) + c, a + (b + c))
    assert same((a + b).total, (b + a).total) and close(a + b, b + a)
    assert same((a + zero).total, a.total) and (a + zero).weight == a.weight


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.5, 50)), min_size=1, max_size=5))
def test_the_mean_is_weighted(clients: list[tuple[int, float]]) -> None:
    tally = reduce(add, (Tally.of(result(seed), weight) for seed, weight in clients))
    whole = sum(weight for _, weight in clients)
    expected = sum(tree(seed)["model"]["w"] * (weight / whole) for seed, weight in clients)
    assert torch.allclose(tally.mean()["model"]["w"], torch.as_tensor(expected))
    assert tally.clients == len(clients)


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_tally_that_weighs_nothing_has_no_mean(weight: float) -> None:
    with pytest.raises(SimulationError, match="no mean") as refusal:
        Tally.of(result(1), weight).mean()
    assert "min_examples" in refusal.value.hint


def test_empty_contributions_have_an_empty_mean() -> None:
    assert (Tally.of(ClientResult({}, {}), 1.0) + Tally.of(ClientResult({}, {}), 2.0)).mean() == {}


def test_by_default_the_server_adds_the_mean_shows_everything_and_nodes_keep_nothing() -> None:
    task = plain()
    bare = Algorithm(name="bare", task=task, init=lambda: task.init, client_update=lambda *_: ClientResult({}, {}))
    step = {k: torch.ones_like(t) for k, t in task.init.items()}
    after = bare.server_update(Round(0, 1, 1), task.init, step)
    assert distance(after, {k: t + 1 for k, t in task.init.items()}) == 0
    assert bare.broadcast(after) is after and bare.enroll(after) == {}
    x = torch.ones(2, 6, dtype=torch.float64)
    assert torch.equal(bare.outputs(task.init, {}, x), task.predict(task.init, x))
    assert bare.weighting == "examples" and bare.associative


def test_a_prediction_of_its_own_comes_before_the_tasks() -> None:
    task = plain()
    own = Algorithm(
        name="own",
        task=task,
        init=lambda: {},
        client_update=lambda *_: ClientResult({}, {}),
        predict=lambda shared, personal, x: x.sum(1, keepdim=True),
    )
    assert own.outputs({}, {}, torch.ones(2, 6)).tolist() == [[6.0], [6.0]]
