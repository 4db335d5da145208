"""What a network, a disk and a clock can do to a federation: it goes on, and nothing counts twice or is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from torch import Tensor

from freehold.errors import StoreError, Unreachable
from freehold.node import credentials
from freehold.plan import Plan, runs_of
from freehold.wire.admin import Results, TokenMade, TokenRequest
from freehold.wire.client import Connection, trusting
from freehold.wire.link import blind
from freehold.wire.routes import CA
from tests.federation.forwarder import Forwarder
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import in_step, personal_state, server_state

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 4


class Behind(Federation):
    """A federation whose nodes know their coordinator by a name, behind a forwarder."""

    forwarder: Forwarder

    @property
    def url(self) -> str:
        return f"https://localhost:{self.forwarder.port}"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Behind]:
    found = Behind(tmp_path_factory.mktemp("survival"), NODES, fork=fork)
    found.forwarder = Forwarder(found.port)
    found.start()
    try:
        yield found
    finally:
        found.forwarder.close()
        found.stop()


@pytest.fixture(scope="module")
def undisturbed(federation: Behind) -> dict[str, Tensor]:
    plan = plan_named("undisturbed")
    federation.finished(federation.run(plan))
    return server_state(federation, runs_of(plan)[0].id)


def plan_named(name: str, **policy: object) -> Plan:
    plan = heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))
    return msgspec.structs.replace(plan, round=msgspec.structs.replace(plan.round, **policy))


def ended(federation: Federation, plan: Plan) -> tuple[Results, dict[int, list[str]]]:
    """The study ends; nothing is pending in any vault, and SCAFFOLD's control variates are in step."""
    run = runs_of(plan)[0].id
    results = federation.finished(federation.run(plan))
    in_step(federation, run, NODES)
    return results, {r.round: r.heard for r in results.rounds if r.round < ROUNDS}


def as_undisturbed(federation: Federation, plan: Plan, undisturbed: dict[str, Tensor]) -> None:
    """It ends as if nothing had happened."""
    _, heard = ended(federation, plan)
    assert heard == dict.fromkeys(range(ROUNDS), NODES)
    state = server_state(federation, runs_of(plan)[0].id)
    assert all(state[key].equal(value) for key, value in undisturbed.items())


def restart(federation: Federation, node: str, failpoints: str = "") -> None:
    federation.nodes[node].stop()
    federation.start_node(node, failpoints)


# Stragglers.


def test_a_frozen_node_is_not_waited_for(federation: Behind) -> None:
    plan = plan_named("frozen-node", quorum=2, deadline_s=4.0)
    federation.run(plan)
    hungary = federation.nodes["hungary"]
    hungary.wait_for("contribution.sent", run=runs_of(plan)[0].id, round=0)
    hungary.popen.send_signal(signal.SIGSTOP)
    try:
        federation.coordinator.wait_for("round.closed", heard=2)
    finally:
        hungary.popen.send_signal(signal.SIGCONT)
    ended(federation, plan)


def test_a_node_that_is_gone_for_good(federation: Behind) -> None:
    plan = plan_named("gone", quorum=2, deadline_s=5.0)
    federation.run(plan)
    federation.nodes["hungary"].wait_for("contribution.sent", run=runs_of(plan)[0].id, round=0)
    federation.nodes["hungary"].kill()
    digest = federation.run(plan)
    results = federation.finished(digest)
    assert [r.heard for r in results.rounds if r.round == ROUNDS - 1] == [["cleveland", "switzerland"]]
    federation.start_node("hungary")  # a week later
    ended(federation, plan)


def test_without_quorum_a_study_waits(federation: Behind, undisturbed: dict[str, Tensor]) -> None:
    plan = plan_named("waiting", deadline_s=2.0)
    federation.run(plan)
    federation.nodes["hungary"].wait_for("contribution.sent", round=0)
    federation.nodes["hungary"].kill()
    for _ in range(2):
        federation.coordinator.wait_for("round.short", heard=2)
    federation.start_node("hungary")
    as_undisturbed(federation, plan, undisturbed)


# The way to the coordinator.


def test_a_coordinator_that_is_away(federation: Behind, undisturbed: dict[str, Tensor]) -> None:
    plan = plan_named("away")
    federation.run(plan)
    federation.coordinator.wait_for("round.closed", round=0)
    federation.coordinator.kill()
    for node in NODES:
        federation.nodes[node].wait_for("coordinator.unreachable")
    federation.start_coordinator()
    as_undisturbed(federation, plan, undisturbed)


def test_a_coordinator_that_moves(federation: Behind, undisturbed: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name stays, and leads elsewhere."""
    plan = plan_named("moved")
    federation.run(plan)
    federation.coordinator.wait_for("round.closed", round=0)
    federation.coordinator.stop()
    federation.port += 1 if federation.port < 60000 else -1
    federation.start_coordinator()
    federation.forwarder.target = federation.port
    as_undisturbed(federation, plan, undisturbed)


@pytest.mark.parametrize("then", ["go on", "cut"])
def test_a_black_hole(federation: Behind, undisturbed: dict[str, Tensor], then: str) -> None:
    """The network swallows the rest of uploads, without a word to either side."""
    plan = plan_named(f"hole-{then.replace(' ', '-')}")
    federation.forwarder.hold_after(100)
    federation.run(plan)
    assert federation.forwarder.swallowing.wait(60)
    federation.forwarder.go_on() if then == "go on" else federation.forwarder.cut()
    as_undisturbed(federation, plan, undisturbed)


# Disks.

FULL = ["contribution@1", "contribution@3", "round@1", "round@2", "measures@1", "run_ended@1"]


@pytest.mark.parametrize("point", FULL)
def test_a_coordinator_whose_disk_is_full_for_a_moment(federation: Behind, undisturbed: dict[str, Tensor], point: str) -> None:
    name, _, nth = point.partition("@")
    federation.coordinator.stop()
    federation.start_coordinator(f"coordinator.{name}.committing=full@{nth}")
    as_undisturbed(federation, plan_named(f"full-{name.replace('_', '-')}-{nth}"), undisturbed)


def test_a_coordinator_whose_disk_stays_full(federation: Behind, undisturbed: dict[str, Tensor]) -> None:
    """What it cannot keep it does not acknowledge; with space, the study goes on."""
    federation.coordinator.stop()
    federation.start_coordinator("coordinator.contribution.committing=full")
    plan = plan_named("full")
    digest = federation.run(plan)
    for node in NODES:
        for _ in range(2):
            federation.nodes[node].wait_for("coordinator.refused", code=410)
    assert federation.study(digest).runs[0].heard == []
    federation.coordinator.stop()
    federation.start_coordinator()
    as_undisturbed(federation, plan, undisturbed)


def test_a_study_that_cannot_be_kept_is_not_begun(federation: Behind, undisturbed: dict[str, Tensor]) -> None:
    federation.coordinator.stop()
    federation.start_coordinator("coordinator.study.committing=full@1")
    plan = plan_named("full-study")
    with pytest.raises(StoreError):
        federation.run(plan)
    as_undisturbed(federation, plan, undisturbed)


def test_a_node_whose_disk_is_full_sends_nothing(federation: Behind) -> None:
    restart(federation, "hungary", "node.pending.committing=full@2")
    plan = plan_named("full-node")
    federation.run(plan)
    federation.coordinator.wait_for("work.declined", node="hungary", code=304)
    _, heard = ended(federation, plan)
    assert heard == {0: NODES, 1: ["cleveland", "switzerland"], 2: NODES, 3: NODES}
    restart(federation, "hungary")


def test_a_node_that_cannot_commit_does_not_train_on(federation: Behind, undisturbed: dict[str, Tensor]) -> None:
    restart(federation, "hungary", "node.settle.committing=full@2")
    plan = plan_named("full-settle")
    federation.run(plan)
    federation.nodes["hungary"].wait_for("vault.refused", code=304)
    as_undisturbed(federation, plan, undisturbed)
    restart(federation, "hungary")


# Clocks and certificates.


@pytest.mark.parametrize("ahead_s", [600.0, -600.0])
def test_clocks_that_are_ten_minutes_apart(tmp_path: Path, fork: Path, ahead_s: float) -> None:
    federation = Federation(tmp_path, NODES[:2], fork=fork, settings={"clock_ahead_s": ahead_s})
    federation.start()
    try:
        plan = heart_plan("fedavg", name="clocks", rounds=2, nodes=2)
        assert len(federation.finished(federation.run(plan)).rounds) == 3
    finally:
        federation.stop()


def test_clocks_that_are_hours_apart_are_said_to_be(tmp_path: Path, fork: Path) -> None:
    """Certificates begin 15 minutes before they are made, and no earlier."""
    federation = Federation(tmp_path, [], fork=fork, settings={"clock_ahead_s": 7200.0})
    federation.start_coordinator()
    try:
        asking = Connection(federation.url, blind)
        roots = asking.get(CA.path).decode("ascii")
        asking.close()
        with pytest.raises(Unreachable, match="not yet valid") as raised:
            Connection(federation.url, trusting(roots)).get(CA.path)
        assert "clock" in raised.value.hint
    finally:
        federation.stop()


def test_certificates_that_are_renewed_while_training(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, NODES[:2], fork=fork, settings={"node_life_s": 6.0})
    federation.start()
    try:
        plan = heart_plan("fedavg", name="renewals", rounds=60, nodes=2)
        digest = federation.run(plan)
        for node in NODES[:2]:
            for _ in range(2):
                federation.nodes[node].wait_for("certificate.renewed")
        results = federation.finished(digest)
        assert all(r.heard == NODES[:2] for r in results.rounds if r.round < 60)
    finally:
        federation.stop()


def test_a_certificate_that_ran_out_while_the_node_was_away(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, NODES[:1], fork=fork, settings={"node_life_s": 5.0})
    federation.start()
    try:
        plan = heart_plan("scaffold-uniform", name="before", rounds=2, nodes=1)
        federation.finished(federation.run(plan))
        federation.nodes["cleveland"].stop()
        federation.until(lambda: time.time() > credentials.load(tmp_path / "cleveland").not_after)
        before = personal_state(federation, "cleveland", runs_of(plan)[0].id)
        (tmp_path / "cleveland.token").unlink()
        federation.start_node("cleveland", wait=False)
        assert federation.nodes["cleveland"].wait_end() == 1
        assert "has no valid identity" in (tmp_path / "cleveland.log").read_text()
        token = federation.admin.post("/v1/tokens", TokenRequest(node="cleveland"), TokenMade).token
        (tmp_path / "cleveland.token").write_text(token)
        federation.start_node("cleveland")
        after = personal_state(federation, "cleveland", runs_of(plan)[0].id)
        assert all(after[key].equal(value) for key, value in before.items())
        federation.finished(federation.run(heart_plan("scaffold-uniform", name="after", rounds=1, nodes=1)))
        assert os.path.exists(tmp_path / "cleveland" / "vault" / "vault.sqlite")
    finally:
        federation.stop()
