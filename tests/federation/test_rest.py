"""A node that rests, by its hours or on a metered connection, is not waited for; it comes back and takes part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan

NODES = ["cleveland", "hungary", "switzerland"]
AWAKE = ["cleveland", "switzerland"]
ROUNDS = 3


class Resting(Federation):
    """A federation of which hungary works from 08:00 to 20:00 UTC, by a clock that the test sets."""

    @property
    def clock(self) -> Path:
        return self.folder / "clock"

    def start_hungary(self, failpoints: str = "", **settings: object) -> None:
        given = {"hours": "08:00-20:00", "clock": str(self.clock), **settings}
        self.start_node("hungary", failpoints, settings=given, environment={"TZ": "UTC"})

    def at(self, hour: int) -> None:
        """Have hungary's clock show this hour of the day."""
        now = time.time()
        fresh = self.folder / "clock.new"
        fresh.write_text(str(now - now % 86400 + 3600 * hour - now))
        fresh.rename(self.clock)

    def heard(self, plan: Plan) -> dict[int, list[str]]:
        return {r.round: r.heard for r in self.finished(self.run(plan)).rounds if r.round < ROUNDS}


@pytest.fixture
def federation(tmp_path: Path, fork: Path) -> Iterator[Resting]:
    found = Resting(tmp_path, NODES, fork=fork)
    found.at(12)
    found.start_coordinator()
    for name in AWAKE:
        found.start_node(name)
    try:
        yield found
    finally:
        found.stop()


def test_a_node_out_of_its_hours_is_not_waited_for_and_comes_back(federation: Resting) -> None:
    federation.start_hungary()
    assert federation.heard(heart_plan("fedavg", name="noon", rounds=ROUNDS, nodes=3)) == dict.fromkeys(range(ROUNDS), NODES)
    federation.at(23)  # it waits for work, and offers its data still
    night = heart_plan("fedavg", name="night", rounds=ROUNDS, nodes=3)
    assert federation.heard(night) == dict.fromkeys(range(ROUNDS), AWAKE)
    federation.coordinator.wait_for("work.declined", run=runs_of(night)[0].id, node="hungary", code=320)
    hungary = federation.nodes["hungary"]
    assert "08:00-20:00" in hungary.wait_for("node.rests")["why"]
    late = heart_plan("fedavg", name="late", rounds=ROUNDS, nodes=2)
    assert federation.heard(late) == dict.fromkeys(range(ROUNDS), AWAKE)
    waiting = heart_plan("fedavg", name="waiting", rounds=ROUNDS, nodes=3)
    digest = federation.run(waiting)
    assert federation.study(digest).runs[0].state == "waiting"
    federation.at(9)
    hungary.wait_for("node.works")
    assert federation.heard(waiting) == dict.fromkeys(range(ROUNDS), NODES)


def test_a_round_that_is_being_trained_is_finished_and_sent(federation: Resting) -> None:
    held = federation.folder / "held"
    federation.start_hungary(f"trainer.answering=hold:{held}@3")  # it opened the study, and trained once
    plan = heart_plan("scaffold-uniform", name="evening", rounds=ROUNDS, nodes=3)
    run = runs_of(plan)[0].id
    federation.run(plan)
    federation.until(held.exists)
    federation.at(21)
    held.unlink()
    hungary = federation.nodes["hungary"]
    hungary.wait_for("contribution.sent", run=run, round=1)
    assert federation.heard(plan) == {0: NODES, 1: NODES, 2: AWAKE}


def test_a_metered_connection(federation: Resting, tmp_path: Path) -> None:
    said, programs = tmp_path / "said", tmp_path / "bin"
    said.write_text("u 1")
    programs.mkdir()
    (programs / "busctl").write_text(f"#!/bin/sh\n/bin/cat {said}\n")
    (programs / "busctl").chmod(0o755)
    around = {"TZ": "UTC", "PATH": str(programs)}
    given = {"clock": str(federation.clock), "metered": "never"}
    federation.start_node("hungary", settings=given, environment=around)
    hungary = federation.nodes["hungary"]
    metered = heart_plan("fedavg", name="metered", rounds=ROUNDS, nodes=2)
    assert federation.heard(metered) == dict.fromkeys(range(ROUNDS), AWAKE)
    hungary.stop()
    said.write_text("u 4")
    federation.start_node("hungary", settings=given, environment=around)
    free = heart_plan("fedavg", name="free", rounds=ROUNDS, nodes=3)
    assert federation.heard(free) == dict.fromkeys(range(ROUNDS), NODES)
