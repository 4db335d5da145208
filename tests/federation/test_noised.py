"""Noise per client in a federation of real processes: what is summed is clipped, and no run is like the one before."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from torch import Tensor, cat

from freehold.errors import BenefitKept
from freehold.node import checkpoints
from freehold.node.audit import entries
from freehold.plan import AlgorithmRef, Plan, Privacy, digest, runs_of
from tests.federation.harness import Federation, heart_plan, with_spec
from tests.federation.states import server_state

NODES = ["cleveland", "hungary", "switzerland"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("noised"), NODES, fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def plan_of(name: str, privacy: Privacy, *, lr: float, rounds: int = 1) -> Plan:
    plan = heart_plan("fedavg", name=name, rounds=rounds, nodes=len(NODES))
    training = msgspec.structs.replace(plan.training, weighting="uniform")
    algorithm = AlgorithmRef(name="fedavg", hyperparameters={"lr": lr})
    return with_spec(msgspec.structs.replace(plan, training=training, algorithm=algorithm, privacy=privacy))


def ends_at(federation: Federation, plan: Plan) -> Tensor:
    """All numbers of the server state that a study ended with; every node was heard in every round."""
    run = runs_of(plan)[0].id
    results = federation.finished(federation.run(plan))
    assert [r.heard for r in results.rounds if r.run == run and r.round < plan.training.rounds] == [NODES] * plan.training.rounds
    return cat([tensor.reshape(-1).double() for _, tensor in sorted(server_state(federation, run).items())])


def test_noise_is_added_and_is_as_wide_as_promised(federation: Federation) -> None:
    """Training is the same each time, so two studies differ by noise alone: that of three nodes, each time."""
    privacy = Privacy(unit="client", max_norm=1.0, noise_multiplier=0.05)
    quiet = ends_at(federation, plan_of("quiet", msgspec.structs.replace(privacy, noise_multiplier=1e-9), lr=0.01))
    ends = [ends_at(federation, plan_of(f"noised-{i}", privacy, lr=0.01)) for i in range(2)]
    sigma = 0.05 / len(NODES) ** 0.5  # of the mean
    for noise in (ends[0] - quiet, ends[1] - quiet):
        assert 0 < float(noise.abs().max()) < 6 * sigma
        assert sigma / 3 < float(noise.std()) < 3 * sigma
    assert (ends[0] != ends[1]).all()


def test_a_contribution_far_too_large_moves_the_sum_by_no_more_than_its_bound(federation: Federation) -> None:
    free = ends_at(federation, plan_of("free", Privacy(), lr=10.0))
    bound = Privacy(unit="client", max_norm=0.5, noise_multiplier=1e-6)
    first = ends_at(federation, plan_of("start", msgspec.structs.replace(bound, max_norm=1e-3), lr=1e-6))
    clipped = ends_at(federation, plan_of("clipped", bound, lr=10.0))
    assert float((free - first).norm()) > 50
    assert float((clipped - first).norm()) < 0.51


def test_noise_for_each_record_is_drawn_on_the_nodes_anew_and_measures_stay_there(federation: Federation) -> None:
    """The seeds are the same: with batches and noise from them, two studies would end alike."""
    privacy = Privacy(unit="record", max_norm=1.0, noise_multiplier=0.5, expected_batch=16.0)
    plans = [plan_of(f"record-{i}", privacy, lr=0.05) for i in range(2)]
    first, second = (ends_at(federation, plan) for plan in plans)
    steps = 12 + 11 + 5  # of the three nodes, in batches of 16
    wanted = 0.05 * 0.5 / 16 * (2 * steps) ** 0.5 / len(NODES)  # of noise alone, in the difference of two means
    assert wanted / 2 < float((first - second).std()) < 4 * wanted
    (told,) = federation.finished(digest(plans[0])).measures.values()
    assert {json.loads(body)["code"] for body in told.values()} == {BenefitKept.code} and len(told) == len(NODES)
    for name in NODES:
        lines = [each for each in entries(federation.folder / name / "ledger") if each.plan == digest(plans[0])]
        assert [each.kind for each in lines] == ["contribution"], "no measures"
        assert lines[0].unit == "record"
        path = federation.folder / name / "ledger"
        kept = [n for n, each in enumerate(entries(path), 1) if each.plan is None and each.code == BenefitKept.code]
        federation.until(lambda path=path, n=kept[0]: checkpoints.load(path).head.n >= n)  # type: ignore[misc,union-attr]
        text = (federation.folder / name / "budget" / "budget.json").read_text().splitlines()[0]
        (entry,) = [each for each in json.loads(text)["sets"]["heart"] if each["plan"] == digest(plans[0])]
        told = entry["mechanism"]
        assert (entry["spent"], told["noise_multiplier"], told["lattice"]) == (1, 0.5, 2.0**27)
        assert told["count"] == math.ceil(1 / told["sampling"] - 1e-9), "steps of a pass, at the rate of each"
