"""The deadline of a round: a trainer that is busy past it is stopped if the round went on, and works on if the round waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import server_state

NODES = ["cleveland", "hungary"]
ROUNDS = 4


@pytest.fixture(params=[0.0, 600.0, -600.0], ids=["clocks agree", "ten minutes ahead", "ten minutes behind"])
def federation(tmp_path: Path, fork: Path, request: pytest.FixtureRequest) -> Iterator[Federation]:
    """Its coordinator's clock differs from that of the nodes."""
    found = Federation(tmp_path, NODES, fork=fork, settings={"clock_ahead_s": request.param})
    found.start_coordinator()
    found.start_node("cleveland")
    try:
        yield found
    finally:
        found.stop()


def plan_named(name: str, **policy: object) -> Plan:
    plan = heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=2)
    return msgspec.structs.replace(plan, round=msgspec.structs.replace(plan.round, **policy))


def held_by(federation: Federation, held: Path) -> int:
    """The number of the process that a failpoint holds."""
    federation.until(lambda: held.exists() and bool(held.read_text()))
    return int(held.read_text())


def test_a_stopped_trainer_does_not_stall_its_node(federation: Federation, tmp_path: Path) -> None:
    held = tmp_path / "held"
    federation.start_node("hungary", f"trainer.answering=hold:{held}@4")  # it opened the study, and trained twice
    plan = plan_named("stopped", quorum=1, deadline_s=4.0)
    federation.run(plan)
    trainer = held_by(federation, held)
    os.kill(trainer, signal.SIGSTOP)
    held.unlink()
    federation.coordinator.wait_for("round.closed", round=2, heard=1)
    federation.nodes["hungary"].wait_for("work.given_up", round=2)
    heard = {r.round: r.heard for r in federation.finished(federation.run(plan)).rounds if r.round < ROUNDS}
    assert heard == {0: NODES, 1: NODES, 2: ["cleveland"], 3: NODES}
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)


def test_a_slow_trainer_works_on_while_its_round_waits(federation: Federation, tmp_path: Path) -> None:
    """A round that is short of answers is prolonged: to begin anew each time would never end."""
    held, again = tmp_path / "held", plan_named("undisturbed")
    federation.start_node("hungary")
    federation.finished(federation.run(again))
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"trainer.answering=hold:{held}@4")
    plan = plan_named("slow", deadline_s=2.0)
    federation.run(plan)
    trainer = held_by(federation, held)
    for _ in range(2):
        federation.coordinator.wait_for("round.short", round=2, heard=1)
    held.unlink()
    heard = {r.round: r.heard for r in federation.finished(federation.run(plan)).rounds if r.round < ROUNDS}
    assert heard == dict.fromkeys(range(ROUNDS), NODES)
    os.kill(trainer, 0)  # the same one, still
    state, undisturbed = (server_state(federation, runs_of(each)[0].id) for each in (plan, again))
    assert all(state[key].equal(value) for key, value in undisturbed.items())
