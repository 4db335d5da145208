"""What ε costs in a simulation: noise for each record or client, chosen on the sound side, and told with its promise."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch

import freehold
from freehold.core import Round, flatten
from freehold.engines import LoopEngine, VectorEngine, guarded, planned_work
from freehold.errors import NotPrivate, PlanError, SchemaError, UsageError
from freehold.plan import Plan, Privacy
from freehold.privacy import epsilon_of
from freehold.privacy.accounting import noise_for
from freehold.report import Comparison, summarize
from freehold.study import Noised, make_plan
from freehold.study.noised import largest
from tests.laws.cases import build, task_of
from tests.problems import CLIENTS, distance, feed_for

RECORD = Privacy(unit="record", max_norm=1.0, noise_multiplier=2.0, expected_batch=16.0)


def heart(algorithm: str = "fedavg", privacy: Privacy | None = None, rounds: int = 2) -> Plan:
    plan = make_plan("heart", algorithm, rounds=rounds)
    if privacy is None:
        return plan
    weighting = "uniform" if privacy.unit == "client" else plan.training.weighting
    training = msgspec.structs.replace(plan.training, weighting=weighting)
    return msgspec.structs.replace(plan, privacy=privacy, training=training)


def log_loss(found: Comparison, row: str) -> float:
    (summary,) = [each for each in summarize(found) if each.name == row]
    return float(summary.figures["log_loss"] or math.nan)


def test_record_level_noise_costs_accuracy_and_the_promise_is_told() -> None:
    clear = freehold.simulate(heart(rounds=8), seeds=1)
    noisy = freehold.simulate(heart(privacy=msgspec.structs.replace(RECORD, noise_multiplier=60.0), rounds=8), seeds=1)
    assert log_loss(noisy, "fedavg") > log_loss(clear, "fedavg") and clear.privacy is None
    assert noisy.privacy is not None and noisy.privacy.clear == "" and noisy.privacy.unit == "record"
    (point,) = noisy.privacy.points
    plan = heart(privacy=msgspec.structs.replace(RECORD, noise_multiplier=60.0), rounds=8)
    fewest = min(client.train for client in noisy.clients)
    assert point.epsilon == epsilon_of(plan, 8, fewest) > epsilon_of(plan, 8, fewest + 20)
    assert any("whoever knows it can take the noise away" in note for note in noisy.notes)


def test_what_is_trained_alone_has_no_noise_since_nothing_of_it_leaves() -> None:
    quiet = freehold.simulate(heart(privacy=RECORD), seeds=1)
    loud = freehold.simulate(heart(privacy=msgspec.structs.replace(RECORD, noise_multiplier=900.0)), seeds=1)
    assert quiet.row("local").results[0].figures == loud.row("local").results[0].figures  # type: ignore[union-attr]
    assert quiet.row("fedavg").results[0].figures != loud.row("fedavg").results[0].figures  # type: ignore[union-attr]


def test_numbers_without_a_range_that_is_known_beforehand_are_refused() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"site": np.repeat(["a", "b"], 40), "u": rng.normal(size=80), "y": rng.integers(0, 2, 80)})
    plan = msgspec.structs.replace(make_plan(table, "fedavg", client="site", target="y", rounds=1), privacy=RECORD)
    with pytest.raises(SchemaError, match=r"low and high|range"):
        freehold.simulate(plan, table, client="site", target="y")
    table = table.assign(y=rng.normal(size=80))
    number = make_plan(table, "fedavg", client="site", target="y", rounds=1)
    with pytest.raises(PlanError, match="A number is to be predicted"):
        freehold.simulate(msgspec.structs.replace(number, privacy=RECORD), table, client="site", target="y")


@pytest.mark.parametrize("algorithm", ["fedrep", "ifca", "pfedme", "fedala"])
def test_an_algorithm_that_cannot_keep_the_promise_is_refused_with_its_reason(algorithm: str) -> None:
    with pytest.raises(NotPrivate, match=f"{algorithm} sends what depends on"):
        freehold.simulate(heart(algorithm, RECORD), seeds=1)


@pytest.mark.parametrize("target", [0.3, 2.0, 15.0])
def test_noise_is_found_on_the_sound_side_and_not_far_from_it(target: float) -> None:
    asked = Noised(epsilons=(target,), unit="client")
    plan = msgspec.structs.replace(heart(), training=msgspec.structs.replace(heart().training, weighting="uniform", rounds=20))

    def cost(noise: float) -> float:
        return largest(asked.plan(plan, noise), [1])[0]

    found = noise_for(target, cost, lambda noise: largest(asked.plan(plan, noise), [1], fast=True)[1])
    assert 0.95 * target < cost(found) <= target


def test_an_epsilon_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(PlanError, match="No noise multiplier"):
        noise_for(1e-9, lambda noise: 1 / noise, lambda noise: 1 / noise)
    with pytest.raises(PlanError, match="above 0"):
        noise_for(0.0, lambda noise: 1 / noise, lambda noise: 1 / noise)
    for wrong in ((), (1.0, 1.0)):
        with pytest.raises(UsageError):
            Noised(epsilons=wrong)


def test_each_epsilon_is_a_row_beside_the_one_without_noise() -> None:
    found = freehold.simulate(heart(rounds=4), seeds=2, noised=Noised(epsilons=(8.0, 0.5), unit="client"))
    assert [row.name for row in found.rows] == ["local", "fedavg", "fedavg-epsilon-0.5", "fedavg-epsilon-8"]
    assert found.privacy is not None and found.privacy.clear == "fedavg" and found.asked == "fedavg"
    low, high = found.privacy.points
    assert (low.asked, high.asked) == (0.5, 8.0) and low.noise_multiplier > high.noise_multiplier
    for point in (low, high):
        assert point.asked is not None and 0.95 * point.asked < point.epsilon <= point.asked
        assert point.epsilon <= point.epsilon_by_rdp
    assert log_loss(found, "fedavg-epsilon-0.5") > log_loss(found, "fedavg-epsilon-8") > log_loss(found, "fedavg")
    assert any("With so few" in note or "with so few" in note for note in found.notes), "four hospitals cannot hide one"
    [below] = [note for note in found.notes if "below that of training alone" in note]
    assert below.endswith(f" at ε = {below.removeprefix('At ε = ').partition(' ')[0].rstrip(',')}.")
    with pytest.raises(UsageError, match="plan says how much"):
        freehold.simulate(heart(privacy=RECORD), seeds=1, noised=Noised(epsilons=(1.0,)))


def client_plan(noise: float, max_norm: float) -> Plan:
    privacy = Privacy(unit="client", max_norm=max_norm, noise_multiplier=noise)
    return heart(privacy=privacy)


def test_the_simulators_guard_clips_and_noises_as_a_nodes_does() -> None:
    algorithm = build("fedavg", task_of("plain"))
    feed, work = feed_for("plain"), planned_work(heart())[0]
    shared = algorithm.broadcast(algorithm.init())

    def sent(noise: float, max_norm: float, index: int = 0) -> torch.Tensor:
        found = guarded(algorithm, client_plan(noise, max_norm))
        steps = feed.steps(CLIENTS[0], index, work)
        out = found.client_update(Round(index, 1, 1), shared, found.enroll(shared), steps).contribution
        return torch.cat([t.flatten().double() for t in flatten(out).values()])

    bare = sent(1e-9, 100.0)
    assert float(sent(1e-9, 0.01).norm()) == pytest.approx(0.01, rel=1e-4) and float(bare.norm()) > 0.02
    noise = torch.cat([sent(2.0, 1.0, i) - sent(1e-9, 1.0, i) for i in range(60)])
    assert float(noise.std()) == pytest.approx(2.0, rel=0.1)
    assert guarded(algorithm, heart()) is algorithm
    engines = [kind(guarded(algorithm, client_plan(1.0, 1.0)), feed, work) for kind in (LoopEngine, VectorEngine)]
    both = [engine.collect(Round(0, len(CLIENTS), len(CLIENTS)), shared, CLIENTS).mean() for engine in engines]
    assert distance(*both) < 1e-4
