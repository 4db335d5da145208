"""Blind to the engine: every registered algorithm on four real nodes gives what the vector engine gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torch import Tensor

from freehold.algorithms import build_algorithm
from freehold.core import algorithm_names, flatten, train
from freehold.data import heart
from freehold.engines import Feed, VectorEngine, planned_work
from freehold.errors import FreeholdError
from freehold.plan import Plan, Run, runs_of
from freehold.tasks import build_task, prepare_for, task_definition
from tests.federation.harness import HOSPITALS, Federation, heart_plan
from tests.federation.states import personal_state, server_state

ROUNDS = 2
DEFINITION = task_definition("heart")


def everybody() -> Plan:
    """One study with every algorithm that this task allows."""
    with pytest.raises(FreeholdError):
        heart_plan("fedbn", name="one", rounds=ROUNDS, nodes=4)
    first, *rest = (name for name in algorithm_names() if name != "fedbn")
    return heart_plan(first, name="everybody", rounds=ROUNDS, nodes=4, companions=rest)


@pytest.fixture(scope="module")
def plan(fork: Path) -> Plan:
    return everybody()


@pytest.fixture(scope="module")
def federation(plan: Plan, fork: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("algorithms"), list(HOSPITALS), fork=fork)
    found.start()
    try:
        found.finished(found.run(plan))
        yield found
    finally:
        found.stop()


def simulated(plan: Plan, run: Run) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Server state and personal states of the same run on the vector engine."""
    named = {hospital: name for name, hospital in HOSPITALS.items()}
    population = heart()
    population = replace(population, client=np.array([named[c] for c in population.client]))
    prepared = prepare_for(DEFINITION, plan, population, seed=run.seed)
    algorithm = build_algorithm(build_task(DEFINITION, prepared, plan, run.seed), run.algorithm, plan.contribution.dtype)
    work, adaptation = planned_work(plan)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=run.seed)
    said = plan.training
    engine = VectorEngine(algorithm, feed, work, adaptation=adaptation, weighting=said.weighting, most_weight=said.most_weight)
    server = algorithm.init()
    for report in train(algorithm, engine, sorted(HOSPITALS), rounds=ROUNDS, seed=run.seed):
        server = report.server
    return flatten(server), {c: flatten(p) for c, p in engine.store.committed().items()}


def test_every_algorithm_gives_what_the_vector_engine_gives(federation: Federation, plan: Plan) -> None:
    assert len(runs_of(plan)) >= 25
    for run in runs_of(plan):
        server, personal = simulated(plan, run)
        found = server_state(federation, run.id)
        assert found.keys() == server.keys(), run.algorithm.name
        for key, value in server.items():
            difference = (found[key].double() - value.double()).abs().max().item()
            assert difference < 1e-6 * max(1.0, value.double().abs().max().item()), (run.algorithm.name, key, difference)
        for node, state in personal.items():
            own = personal_state(federation, node, run.id)
            assert own.keys() == state.keys(), (run.algorithm.name, node)
            for key, value in state.items():
                assert own[key].double().allclose(value.double(), atol=1e-6, rtol=1e-5), (run.algorithm.name, node, key)


def test_no_hospital_counts_with_more_than_the_plan_allows(federation: Federation) -> None:
    """What the simulator gives with the same bound, and not what it gives without."""
    plan = heart_plan("fedavg", name="bounded", rounds=ROUNDS, nodes=4)
    unbounded, _ = simulated(plan, runs_of(plan)[0])
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, most_weight=100))
    run = runs_of(plan)[0]
    federation.finished(federation.run(plan))
    server, _ = simulated(plan, run)
    found = server_state(federation, run.id)
    for key, value in server.items():
        assert found[key].double().allclose(value.double(), atol=1e-6), key
    assert not all(found[key].double().allclose(value.double(), atol=1e-4) for key, value in unbounded.items())
