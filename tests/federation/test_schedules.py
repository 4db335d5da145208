"""A study that keeps learning, over processes: it is down when a cycle is due, and dies in its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import stack

from freehold.plan import dumps, runs_of
from freehold.wire.admin import Results, StudyRequest, StudyStarted
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import personal_state, server_state

NODES = ["cleveland", "hungary"]
ROUNDS, EVERY_S = 2, 200.0  # certificates bear clocks that are ten minutes apart

POINTS = [f"coordinator.cycle.{when}" for when in ("committing", "committed")]


@pytest.mark.parametrize("point", POINTS)
def test_a_cycle_that_is_begun_late_and_killed_in_the_beginning(tmp_path: Path, fork: Path, point: str) -> None:
    federation = Federation(tmp_path, NODES, fork=fork)
    federation.start()
    try:
        plan = heart_plan("scaffold-uniform", name="daily", rounds=ROUNDS, nodes=2, companions=["fedavg"])
        request = StudyRequest(plan=dumps(plan), every_s=EVERY_S, times=3)
        digest = federation.admin.post("/v1/studies", request, StudyStarted).digest
        federation.coordinator.wait_for("cycle.finished", cycle=0)
        first = server_state(federation, runs_of(plan)[0].id)
        assert {run.state for run in federation.study(digest).runs} == {"resting"}
        federation.coordinator.stop()
        federation.settings["clock_ahead_s"] = 2.5 * EVERY_S
        federation.start_coordinator(f"{point}=kill", wait=False)  # perhaps before it listens
        assert federation.coordinator.wait_end() == -9
        federation.start_coordinator()
        federation.coordinator.wait_for("cycle.finished", cycle=1)
        info = federation.study(digest)
        assert info.state == "running" and info.schedule is not None
        assert (info.schedule.cycle, info.schedule.times) == (1, 3), "two were missed, one is done"
        own = [personal_state(federation, node, runs_of(plan)[0].id) for node in NODES]
        state = server_state(federation, runs_of(plan)[0].id)
        assert not all(state[key].equal(value) for key, value in first.items()), "it went on"
        for key in own[0]:
            mean = stack([personal[key] for personal in own]).mean(0)
            assert mean.allclose(state[f"control/{key}"], atol=1e-6), "the mean of c_i is c, over the rest"
        for cycle in (0, 1):
            found = federation.admin.get(f"/v1/studies/{digest}?cycle={cycle}", Results)
            heard = {(r.run, r.round): r.heard for r in found.rounds}
            begun = cycle * (ROUNDS + 1)
            assert heard == {
                (run.id, i): [] if i == begun + ROUNDS else NODES
                for run in runs_of(plan)
                for i in range(begun, begun + ROUNDS + 1)
            }
            assert all(set(told) == set(NODES) for told in found.measures.values()) and len(found.measures) == 2
    finally:
        federation.stop()


def test_a_node_that_joined_while_the_study_rested_takes_part(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, NODES[:1], fork=fork)
    federation.start()
    try:
        plan = heart_plan("ditto", name="grows", rounds=ROUNDS, nodes=1)
        request = StudyRequest(plan=dumps(plan), every_s=EVERY_S, times=2)
        digest = federation.admin.post("/v1/studies", request, StudyStarted).digest
        federation.coordinator.wait_for("cycle.finished", cycle=0)
        federation.start_node(NODES[1])
        federation.coordinator.stop()
        federation.settings["clock_ahead_s"] = EVERY_S
        federation.start_coordinator()
        found = federation.finished(digest)
        assert {r.round: r.heard for r in found.rounds if r.heard} == {3: NODES, 4: NODES}
        assert set(found.measures[runs_of(plan)[0].id]) == set(NODES)
        assert personal_state(federation, NODES[1], runs_of(plan)[0].id)
    finally:
        federation.stop()
