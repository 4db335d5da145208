"""Processes that die at the worst moment: every contribution counts exactly once, and personal states stay in step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, stack

from freehold.errors import Unreachable
from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import personal_state, server_state

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 4


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("kills"), NODES, fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> dict[str, Tensor]:
    """The server state after a study in which nobody died."""
    plan = plan_named("undisturbed")
    federation.finished(federation.run(plan))
    return server_state(federation, runs_of(plan)[0].id)


def check(federation: Federation, name: str, undisturbed: dict[str, Tensor]) -> None:
    """The study of that name, begun before or only now, ends as if nobody had died."""
    plan = plan_named(name)
    run = runs_of(plan)[0].id
    results = federation.finished(federation.run(plan))
    heard = {r.round: r.heard for r in results.rounds if r.run == run and r.round < ROUNDS}
    assert heard == dict.fromkeys(range(ROUNDS), NODES), "each node counts once in each round"
    state = server_state(federation, run)
    assert state.keys() == undisturbed.keys()
    assert all(state[k].equal(v) for k, v in undisturbed.items()), "bit-equal to the undisturbed run"
    own = [personal_state(federation, node, run) for node in NODES]
    for key in own[0]:
        mean = stack([personal[key] for personal in own]).mean(0)
        assert mean.allclose(state[f"control/{key}"], atol=1e-6), "the mean of c_i is c"


def plan_named(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))


COORDINATOR_POINTS = [
    "coordinator.study",
    "coordinator.contribution",
    "coordinator.round",
    "coordinator.measures",
    "coordinator.run_ended",
]


@pytest.mark.parametrize("point", [f"{p}.{when}" for p in COORDINATOR_POINTS for when in ("committing", "committed")])
def test_the_coordinator_dies(federation: Federation, undisturbed: dict[str, Tensor], point: str) -> None:
    federation.coordinator.stop()
    nth = 2 if "contribution" in point or "round" in point else 1
    federation.start_coordinator(f"{point}=kill@{nth}")
    name = point.replace(".", "-")
    with contextlib.suppress(Unreachable):  # it may die before it answers
        federation.run(plan_named(name))
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    check(federation, name, undisturbed)


FILE_POINTS = ["coordinator.contribution.written", "coordinator.contribution.named"]
FILE_POINTS += ["coordinator.state.written", "coordinator.state.named"]


@pytest.mark.parametrize("point", FILE_POINTS)
def test_the_coordinator_dies_with_everything_in_files(
    federation: Federation, undisturbed: dict[str, Tensor], point: str
) -> None:
    federation.coordinator.stop()
    federation.settings["inline_bytes"] = 0
    federation.start_coordinator(f"{point}=kill@3")
    name = f"files-{point.replace('.', '-')}"
    with contextlib.suppress(Unreachable):
        federation.run(plan_named(name))
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    check(federation, name, undisturbed)
    del federation.settings["inline_bytes"]


AGENT_POINTS = ["agent.sending", "agent.sent"]


@pytest.mark.parametrize("point", AGENT_POINTS)
def test_an_agent_dies(federation: Federation, undisturbed: dict[str, Tensor], point: str) -> None:
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"{point}=kill@2")
    name = point.replace(".", "-")
    federation.run(plan_named(name))
    assert federation.nodes["hungary"].wait_end() == -9
    federation.start_node("hungary")
    check(federation, name, undisturbed)


ANSWERS = ["guard.answering", "trainer.answering"]
GUARD_POINTS = ["node.pending.committing", "node.pending.committed", "node.settle.committing", "node.settle.committed"]


@pytest.mark.parametrize("point", [*GUARD_POINTS, *ANSWERS])
def test_a_guard_or_a_trainer_dies_every_second_time(federation: Federation, undisturbed: dict[str, Tensor], point: str) -> None:
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"{point}=kill@3" if point.endswith(".answering") else f"{point}=kill@2")
    check(federation, point.replace(".", "-"), undisturbed)
    federation.nodes["hungary"].stop()
    federation.start_node("hungary")
