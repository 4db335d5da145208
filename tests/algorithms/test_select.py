"""`select` leaves local-only for a gain that the validation data shows, and by chance about as often as theory says."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import vmap

from freehold.algorithms import prefer, select
from freehold.core import algorithm_entry, task_from, train
from freehold.engines import Feed, LoopEngine, VectorEngine, Work
from freehold.errors import UsageError
from tests.algorithms.problems import WORK, problem

DRAWS = 20_000
RATE = float(stats.norm.sf(1))  # 0.159


def picks(losses: Tensor) -> Tensor:
    """How often each candidate is chosen, [J], for `losses` [draws, J, n]."""
    return vmap(prefer)(losses, torch.ones(len(losses), losses.shape[2], dtype=torch.bool)).double().mean(0)


def band(rate: float) -> float:
    """Four standard errors of a share of the draws."""
    return 4 * math.sqrt(rate * (1 - rate) / DRAWS)


def noise(candidates: int, examples: int) -> Tensor:
    """Losses per example that differ by chance alone; examples differ among themselves much more, which pairing takes out."""
    draw = torch.Generator().manual_seed(examples)
    hard = 3 * torch.rand(DRAWS, 1, examples, generator=draw, dtype=torch.float64)
    return hard + torch.randn(DRAWS, candidates, examples, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("examples", [5, 12, 30, 100])
def test_without_a_difference_one_candidate_is_taken_in_16_of_100_cases_however_few_examples_there_are(examples: int) -> None:
    """The gain exceeds the quantile of Student's t that one standard deviation is of the normal."""
    assert float(picks(noise(2, examples))[1]) == pytest.approx(RATE, abs=band(RATE))


@pytest.mark.parametrize("examples", [12, 30])
def test_without_a_difference_two_candidates_are_taken_more_often_than_one_and_less_than_twice_as_often(examples: int) -> None:
    theory = RATE
    one, two = picks(noise(3, examples))[1:].tolist()
    assert theory + band(theory) < one + two < 2 * theory + band(2 * theory)
    assert one == pytest.approx(two, abs=2 * band(theory)), "neither is preferred"


def test_without_a_difference_losses_with_long_tails_raise_no_more_alarms() -> None:
    """Log-losses: most examples are easy, and a few are very wrong, for whom is chance."""
    draw = torch.Generator().manual_seed(0)
    losses = torch.empty(DRAWS, 2, 30, dtype=torch.float64).exponential_(generator=draw) ** 2
    assert float(picks(losses)[1]) < 0.2


def test_a_candidate_that_is_clearly_better_is_taken_and_of_two_the_better_one() -> None:
    losses = noise(3, 30)
    losses[:, 1] -= 1.5
    assert float(picks(losses[:, :2])[1]) > 0.999
    losses[:, 2] -= 3.0
    assert float(picks(losses)[2]) > 0.99


def test_a_candidate_that_is_worse_is_left_alone() -> None:
    losses = noise(2, 30)
    losses[:, 1] += 1.0
    assert float(picks(losses)[0]) > 0.999


@pytest.mark.parametrize(("count", "choice"), [(0, 0), (1, 0), (4, 0), (5, 1)])
def test_below_five_validation_examples_the_baseline_stays_however_large_the_gain(count: int, choice: int) -> None:
    losses = torch.stack([torch.full((8,), 9.0), torch.zeros(8)])
    assert int(prefer(losses, torch.arange(8) < count).argmax()) == choice


def test_a_candidate_whose_loss_is_not_finite_is_never_taken() -> None:
    real = torch.ones(8, dtype=torch.bool)
    for bad in (math.nan, math.inf):
        losses = torch.stack([torch.ones(8), torch.zeros(8)])
        losses[1, 3] = bad
        assert int(prefer(losses, real).argmax()) == 0


def test_padding_has_no_vote() -> None:
    losses = torch.tensor([[1.0] * 6 + [100.0] * 20, [2.0] * 6 + [0.0] * 20])
    assert int(prefer(losses, torch.arange(26) < 6).argmax()) == 0


def opposites(examples: int) -> Feed:
    """Each client's labels are its own number, and features say nothing: its own bias is all there is to learn."""
    y = torch.arange(4).repeat_interleave(20) % 2
    rows = torch.arange(80).split(20)
    return Feed(
        x=torch.zeros(80, 1, dtype=torch.float64),
        y=y,
        rows={str(i): {"train": r[:8], "validation": r[8 : 8 + examples], "test": r[15:]} for i, r in enumerate(rows)},
    )


@pytest.mark.parametrize("engine_of", [LoopEngine, VectorEngine])
def test_each_client_is_served_what_its_validation_data_prefers(engine_of: type[LoopEngine]) -> None:
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    task = task_from(model, nn.CrossEntropyLoss(), classes=2)
    built = {n: algorithm_entry(n).build(task, lr=lr) for n, lr in (("local", 1e-6), ("fedavg", 0.5), ("fedper", 0.5))}
    for examples, served in ((7, 2), (4, 0)):
        feed = opposites(examples)
        algorithm = select(built)
        engine = engine_of(algorithm, feed, Work(batch_size=8, epochs=1))
        *_, last = train(algorithm, engine, list(feed.rows), rounds=20)
        shared = algorithm.broadcast(last.server)
        own = {c: LoopEngine.adapted(engine, shared, c) for c in feed.rows}
        assert {int(p["choice"].argmax()) for p in own.values()} == {served}
        for client, sums in engine.evaluate(shared, list(feed.rows), "test").items():
            assert (float(sums["correct"]) == 5) == (served == 2 or int(client) % 2 == 1), "untrained, it says 1"


def test_a_newcomer_without_training_data_is_served_the_baseline() -> None:
    given = problem(validation=0)
    candidates = {n: algorithm_entry(n).build(given.task) for n in ("local", "fedavg")}
    algorithm = select(candidates)
    engine = LoopEngine(algorithm, given.feed, WORK)
    shared = algorithm.broadcast(algorithm.init())
    assert engine.adapted(shared, "a")["choice"].tolist() == [1, 0]


def test_what_cannot_run_side_by_side_is_refused() -> None:
    task = problem().task
    fedavg = algorithm_entry("fedavg").build(task)
    for candidates in (
        {"fedavg": fedavg},
        {"fedavg": fedavg, "other": algorithm_entry("fedavg").build(problem().task)},
        {"fedavg": fedavg, "scaffold": algorithm_entry("scaffold-uniform").build(task)},
    ):
        with pytest.raises(UsageError, match="side by side"):
            select(candidates)
