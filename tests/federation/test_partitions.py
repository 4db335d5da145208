"""A network that is cut in the middle of a round, by a router: the node comes back, and nothing counts twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from torch import Tensor

from freehold.plan import Plan, runs_of
from tests.federation.apart import Apart
from tests.federation.harness import heart_plan
from tests.federation.namespaces import FAR, NEAR, Networks, possible
from tests.federation.states import in_step, server_state

pytestmark = pytest.mark.skipif(not possible(), reason="this user may not make network namespaces here")

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 4


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Apart]:
    networks = Networks()
    settings = {"host": NEAR, "names": [NEAR]}
    found = Apart(tmp_path_factory.mktemp("apart"), NODES, networks=networks, fork=fork, settings=settings)
    found.start()
    try:
        yield found
    finally:
        found.stop()
        networks.close()


@pytest.fixture(scope="module")
def undisturbed(federation: Apart) -> dict[str, Tensor]:
    plan = plan_named("undisturbed")
    federation.finished(federation.run(plan))
    return server_state(federation, runs_of(plan)[0].id)


def plan_named(name: str, **policy: object) -> Plan:
    plan = heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))
    return msgspec.structs.replace(plan, round=msgspec.structs.replace(plan.round, **policy))


def cut_while_training(federation: Apart, plan: Plan, held: Path, *destinations: str) -> None:
    """Begin a study, and drop what goes to these addresses while hungary trains in round 1; then let it send."""
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"trainer.answering=hold:{held}@3")  # it opened the study, and trained once
    federation.run(plan)
    federation.until(held.exists)
    federation.networks.drop(*destinations)
    held.unlink()


def heard(federation: Apart, plan: Plan) -> dict[int, list[str]]:
    """Who was heard in each round of a study that has ended, with every node in step."""
    results = federation.finished(federation.run(plan))
    in_step(federation, runs_of(plan)[0].id, NODES)
    return {r.round: r.heard for r in results.rounds if r.round < ROUNDS}


@pytest.mark.parametrize("lost", [[NEAR], [FAR], [NEAR, FAR]], ids=["what it sends", "what it is answered", "both"])
def test_a_cut_node_comes_back_in_time(
    federation: Apart, undisturbed: dict[str, Tensor], tmp_path: Path, lost: list[str], request: pytest.FixtureRequest
) -> None:
    plan = plan_named(f"cut-{len(lost)}-{lost[0].replace('.', '-')}", deadline_s=4.0)
    cut_while_training(federation, plan, tmp_path / "held", *lost)
    if lost == [FAR]:
        federation.coordinator.wait_for("contribution.received", round=1, node="hungary")
    else:
        federation.coordinator.wait_for("round.short", round=1, heard=2)
    federation.networks.heal()
    assert heard(federation, plan) == dict.fromkeys(range(ROUNDS), NODES)
    state = server_state(federation, runs_of(plan)[0].id)
    assert all(state[key].equal(value) for key, value in undisturbed.items())


def test_a_cut_node_comes_back_too_late(federation: Apart, tmp_path: Path) -> None:
    plan = plan_named("late", quorum=2, deadline_s=4.0)
    cut_while_training(federation, plan, tmp_path / "held", NEAR, FAR)
    federation.coordinator.wait_for("round.closed", round=2, heard=2)
    federation.networks.heal()
    federation.nodes["hungary"].wait_for("coordinator.refused", code=407)
    found = heard(federation, plan)
    assert found[0] == NODES and found[1] == found[2] == ["cleveland", "switzerland"]
