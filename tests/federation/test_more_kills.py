"""A coordinator that dies while it first starts, hears of a node, changes a cohort or ends a study."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from freehold.errors import Unreachable
from freehold.node.lines import Head, Key
from freehold.plan import runs_of
from freehold.wire.admin import Done, Subject
from freehold.wire.messages import Train
from tests.federation.harness import Federation, Process, heart_plan
from tests.federation.peer import Peer, good, joined, packed

AUTHORITY_POINTS = [
    f"coordinator.authority.{name}.{step}"
    for name in ("root-key", "root", "roots", "issuer", "server")
    for step in ("writing", "written", "named")
]
START_POINTS = [
    *(f"coordinator.replica.{step}" for step in ("writing", "written", "named")),
    "coordinator.roots.committing",
    "coordinator.roots.committed",
]
OFFER_POINTS = ["coordinator.offer.committing", "coordinator.offer.committed"]
EXTEND_POINTS = ["coordinator.extend.committing", "coordinator.extend.committed"]
END_POINTS = ["coordinator.study_ended.committing", "coordinator.study_ended.committed"]
WITNESS_POINTS = ["coordinator.witness.committing", "coordinator.witness.committed"]
POINTS = [*AUTHORITY_POINTS, *START_POINTS, *OFFER_POINTS, *EXTEND_POINTS, *END_POINTS, *WITNESS_POINTS]


@pytest.fixture
def bare(tmp_path: Path, fork: Path) -> Iterator[Federation]:
    """A coordinator without nodes, not yet started."""
    found = Federation(tmp_path, [], fork=fork)
    yield found
    found.stop()


def begun(federation: Federation, tmp_path: Path) -> tuple[Peer, str, str]:
    """A node that was asked in the only round of a study: the node, the study, the run."""
    yan = joined(federation, "yan", tmp_path)
    yan.work()
    plan = heart_plan("fedavg", name="small", rounds=1, nodes=1)
    plan = msgspec.structs.replace(plan, round=msgspec.structs.replace(plan.round, deadline_s=2.0))
    digest = federation.run(plan)
    assert isinstance(yan.work(wait_s=30.0).work, Train)
    return yan, digest, runs_of(plan)[0].id


def finish(federation: Federation, yan: Peer, digest: str, run: str) -> None:
    plan = heart_plan("fedavg", name="small", rounds=1, nodes=1)
    assert isinstance(yan.work(wait_s=30.0).work, Train)
    assert yan.contribute(run, 0, packed(good(runs_of(plan)[0].contribution))).code == 0
    assert yan.work(wait_s=30.0).work is not None
    assert yan.decline(run, 1).code == 0
    assert federation.finished(digest).rounds[0].heard == ["yan"]


@pytest.mark.parametrize("point", [*AUTHORITY_POINTS, *START_POINTS])
def test_the_first_start(bare: Federation, tmp_path: Path, point: str) -> None:
    arguments = ["coordinator", str(tmp_path / "coordinator"), str(bare.port), json.dumps({})]
    environment = {**bare._environment, "FREEHOLD_FAILPOINTS": f"{point}=kill"}
    assert Process(arguments, tmp_path / "first.log", environment=environment).wait_end() == -9
    bare.start_coordinator()
    yan = joined(bare, "yan", tmp_path)
    assert yan.work().work is None
    yan.close()


@pytest.mark.parametrize("point", WITNESS_POINTS)
def test_a_head_of_a_ledger(bare: Federation, tmp_path: Path, point: str) -> None:
    """What was answered is kept; what was not is shown again."""
    key = Key(Ed25519PrivateKey.generate())
    bare.start_coordinator(f"{point}=kill@2")
    yan = joined(bare, "yan", tmp_path)
    assert yan.show(key.show(Head(5, "a" * 64))).n == 5
    with pytest.raises((OSError, http.client.HTTPException)):
        yan.show(key.show(Head(9, "b" * 64)))
    assert bare.coordinator.wait_end() == -9
    bare.start_coordinator()
    assert yan.show(key.show(Head(4, "c" * 64))).n == (9 if point.endswith("committed") else 5)
    bare.coordinator.wait_for("ledger.amiss", node="yan")
    assert yan.show(key.show(Head(9, "b" * 64))) == key.show(Head(9, "b" * 64))
    yan.close()


@pytest.mark.parametrize("point", OFFER_POINTS)
def test_the_first_word_of_a_node(bare: Federation, tmp_path: Path, point: str) -> None:
    bare.start_coordinator(f"{point}=kill")
    yan = joined(bare, "yan", tmp_path)
    with pytest.raises((OSError, http.client.HTTPException)):
        yan.work()
    assert bare.coordinator.wait_end() == -9
    bare.start_coordinator()
    yan.work()
    plan = heart_plan("fedavg", name="small", rounds=1, nodes=1)
    finish(bare, yan, bare.run(plan), runs_of(plan)[0].id)
    yan.close()


@pytest.mark.parametrize("point", EXTEND_POINTS)
def test_a_cohort_that_shrinks(bare: Federation, tmp_path: Path, point: str) -> None:
    bare.start_coordinator(f"{point}=kill")
    yan, digest, run = begun(bare, tmp_path)
    with pytest.raises((OSError, http.client.HTTPException)):
        yan.decline(run, 0)
    assert bare.coordinator.wait_end() == -9
    bare.start_coordinator()
    finish(bare, yan, digest, run)  # asked again, at the latest after the deadline
    yan.close()


@pytest.mark.parametrize("point", END_POINTS)
def test_a_study_that_is_stopped(bare: Federation, tmp_path: Path, point: str) -> None:
    bare.start_coordinator(f"{point}=kill")
    yan, digest, _ = begun(bare, tmp_path)
    with contextlib.suppress(Unreachable):
        bare.admin.post("/v1/studies/stop", Subject(name=digest), Done)
    assert bare.coordinator.wait_end() == -9
    bare.start_coordinator()
    assert bare.study(digest).state == ("running" if point.endswith("committing") else "stopped")
    bare.admin.post("/v1/studies/stop", Subject(name=digest), Done)
    assert bare.study(digest).state == "stopped"
    assert yan.work().work is None
    yan.close()
