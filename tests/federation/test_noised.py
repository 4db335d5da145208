"""Noise per client in a federation of real processes: what is summed is clipped, and no run is like the one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from torch import Tensor, cat

from freehold.plan import AlgorithmRef, Plan, Privacy, runs_of
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
