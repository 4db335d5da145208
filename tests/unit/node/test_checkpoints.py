"""Checkpoints: a tail that was cut off after one is found, offline; and nothing leaves from a ledger that was put back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.coordinator import certificates
from freehold.errors import BenefitKept, CheckpointRefused, LedgerDamaged, LedgerError, OwnerDenied
from freehold.node import checkpoints
from freehold.node.audit import Verdict, entries, verify
from freehold.node.door import CHECKPOINT_LINES, Door
from freehold.node.ledger import FILE
from freehold.wire.messages import Countersigned, LedgerHead
from tests.unit.node.test_ledger import armed, paths
from tests.unit.node.witnessing import NOW, Coordinator, coordinator

POINTS = [f"node.checkpoint.{step}" for step in ("writing", "written", "named")]


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with coordinator(tmp_path_factory.mktemp("coordinator")) as found:
        yield found


@pytest.fixture
def anew(court: Coordinator) -> Coordinator:
    court.now += 60.0
    court.enroll("alice")
    return court


def opened(state: Path) -> Door:
    return Door(state, node="alice", peer="https://c")


def due(door: Door) -> LedgerHead:
    found = door.head()
    assert found is not None
    return found


def witnessed(state: Path, court: Coordinator, lines: int = 3) -> Countersigned:
    """A ledger of so many lines beside the first, all of them witnessed."""
    door = opened(state)
    for index in range(lines):
        door.note("approval", f"number {index}")
    found = court.shown("alice", due(door))
    assert door.witnessed(found, court.roots) == [] and door.head() is None
    door.close()
    return found


def judged(folder: Path, body: bytes, court: Coordinator) -> Verdict:
    """What anybody finds who has the ledger, its checkpoint, and the federation's roots."""
    found = checkpoints.load(folder)
    assert found is not None and found.head is not None
    head = checkpoints.check(found, court.roots)
    assert head is not None
    path = folder / "judged"
    path.write_bytes(body)
    return verify(path, key=found.head.key, witnessed={head.n: head.hash})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, court: Coordinator) -> tuple[Path, bytes]:
    state = tmp_path_factory.mktemp("good")
    witnessed(state, court, 6)
    return state / "ledger", (state / "ledger" / FILE).read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_byte_changed_or_lines_dropped_at_the_end_are_found(
    good: tuple[Path, bytes], court: Coordinator, data: st.DataObject
) -> None:
    folder, body = good
    assert judged(folder, body, court).wrong is None
    lines = body.splitlines(keepends=True)
    if data.draw(st.booleans()):
        kept = data.draw(st.integers(0, len(lines) - 1))
        found = judged(folder, b"".join(lines[:kept]), court)
        assert found.wrong == kept + 1 and "tail is missing" in found.why
    else:
        at = data.draw(st.integers(0, len(body) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda b: b != body[at]))
        assert judged(folder, body[:at] + bytes([other]) + body[at + 1 :], court).wrong == body[:at].count(b"\n") + 1


def test_lines_after_a_checkpoint_may_come_and_those_before_it_may_not_be_others(tmp_path: Path, anew: Coordinator) -> None:
    witnessed(tmp_path, anew)
    door = opened(tmp_path)
    door.note("approval", "later")
    body = (tmp_path / "ledger" / FILE).read_bytes()
    assert judged(tmp_path / "ledger", body, anew).wrong is None
    anew.now += 60.0
    anew.enroll("alice")
    witnessed(tmp_path / "other", anew)  # by its own key: a whole ledger, but not this one
    other = (tmp_path / "other" / "ledger" / FILE).read_bytes()
    found = judged(tmp_path / "ledger", other, anew)
    assert found.wrong == 1 and "another key" in found.why


def test_a_head_is_due_at_the_start_after_many_lines_and_not_before(tmp_path: Path, anew: Coordinator) -> None:
    witnessed(tmp_path, anew)
    door = opened(tmp_path)
    assert door.head() is None, "nothing was opened"
    door.note("approval", "first")
    assert door.witnessed(anew.shown("alice", due(door)), anew.roots) == []
    for _ in range(CHECKPOINT_LINES - 1):
        door.note("approval", "next")
        assert door.head() is None
    door.note("approval", "last")
    assert due(door).n == 4 + 1 + CHECKPOINT_LINES


def put_back(state: Path, lines: int) -> None:
    """As a backup does it, or somebody with something to hide: the ledger is shorter, and the checkpoint is as it was then."""
    path = state / "ledger" / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


def test_nothing_leaves_from_a_ledger_that_is_shorter_than_its_checkpoint(tmp_path: Path, anew: Coordinator) -> None:
    witnessed(tmp_path, anew)
    whole = (tmp_path / "ledger" / FILE).read_bytes()
    put_back(tmp_path, 3)
    with pytest.raises(LedgerDamaged, match="has 3 lines"):
        opened(tmp_path).note("approval", "x")
    assert (tmp_path / "ledger" / FILE).read_bytes().count(b"\n") == 3, "left as it is"
    (tmp_path / "ledger" / FILE).write_bytes(whole)
    opened(tmp_path).note("approval", "x")


def test_the_coordinator_proves_to_a_node_that_all_of_it_was_put_back(tmp_path: Path, anew: Coordinator) -> None:
    state, backup = tmp_path / "node", tmp_path / "backup"
    witnessed(state, anew)
    shutil.copytree(state, backup)
    door = opened(state)
    for index in range(4):
        door.note("approval", f"to be forgotten {index}")
    door.witnessed(anew.shown("alice", due_after(door)), anew.roots)
    door.close()
    shutil.rmtree(state)
    shutil.copytree(backup, state)  # ledger, budget and checkpoint: nothing on this machine tells
    door = opened(state)
    door.note("approval", "as if nothing had been")
    answer = anew.shown("alice", due(door))
    assert "went back" in anew.fault("alice")
    events = door.witnessed(answer, anew.roots)
    assert [(each.name, each.fields["lines"], each.fields["witnessed"]) for each in events] == [("checkpoint.behind", 5, 8)]
    for each in (door, opened(state)):
        with pytest.raises(LedgerDamaged):
            each.note("approval", "x")


def due_after(door: Door) -> LedgerHead:
    door._due = True
    return due(door)


def test_a_coordinator_without_the_ledgers_key_proves_nothing(tmp_path: Path, anew: Coordinator) -> None:
    """It says that it knows more lines; of another key, the owner is told, and the node goes on."""
    theirs = witnessed(tmp_path / "theirs", anew, 50)
    door = opened(tmp_path / "ours")
    door.note("approval", "x")
    assert [each.name for each in door.witnessed(theirs, anew.roots)] == ["checkpoint.unlike"]
    assert door.head() is None, "it is not shown with each message from now on"
    door.note("approval", "y")
    assert not (tmp_path / "ours" / "ledger" / checkpoints.FILE).exists()


def test_each_part_of_a_checkpoint_counts(tmp_path: Path, anew: Coordinator) -> None:
    found = witnessed(tmp_path, anew)
    assert found.head is not None
    lower = msgspec.structs.replace(found.head, n=found.head.n - 1)
    other = Coordinator(tmp_path / "other")
    changes: list[dict[str, object]] = [
        {"node": "bob"},
        {"time": found.time + 1},
        {"signature": "00" * 70},
        {"head": lower},
        {"head": None},
        {"chain": other.pair[0].read_text()[other.pair[0].read_text().index("-----BEGIN CERT") :]},
        {"chain": "nothing"},
    ]
    for change in changes:
        with pytest.raises(CheckpointRefused):
            checkpoints.check(msgspec.structs.replace(found, **change), anew.roots)
        door = opened(tmp_path)
        door.note("approval", "x")
        events = door.witnessed(msgspec.structs.replace(found, **change), anew.roots)
        assert [each.name for each in events] == ["checkpoint.refused"]
        door.close()
    other.store.close()
    with pytest.raises(CheckpointRefused, match="of node alice"):
        checkpoints.check(found, anew.roots, node="bob")
    with pytest.raises(CheckpointRefused):
        checkpoints.check(found, other.roots)


@pytest.mark.parametrize("time", [1e300, -1e300, 1e15])
def test_a_time_that_no_calendar_has_does_not_end_the_guard(tmp_path: Path, anew: Coordinator, time: float) -> None:
    door = opened(tmp_path)
    door.note("approval", "one")
    found = msgspec.structs.replace(anew.shown("alice", due(door)), time=time)
    (event,) = door.witnessed(found, anew.roots)
    assert event.name == "checkpoint.refused"


def test_a_node_cannot_countersign_for_another(tmp_path: Path, court: Coordinator) -> None:
    """Its certificate leads to the same roots, but is no server's."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, certificates.hashes.SHA256())
    issued = court.authority.sign(request.public_bytes(Encoding.PEM).decode(), role="node", name="mallory", now=NOW)
    (tmp_path / "pair.pem").write_text(certificates.key_pem(key) + issued.chain)
    forger = Coordinator(tmp_path / "forger")
    forger.pair = (tmp_path / "pair.pem", tmp_path / "pair.pem")
    forger.enroll("alice")
    forged = forger.latest("alice")
    forger.store.close()
    with pytest.raises(CheckpointRefused, match="not that of a coordinator"):
        checkpoints.check(forged, court.roots)
    assert checkpoints.check(court.latest("nobody"), court.roots) is None


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_coordinators_key_of_the_organisations_own_ca_may_be_of_another_kind(
    tmp_path: Path, court: Coordinator, kind: str
) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else Ed25519PrivateKey.generate()
    issued = certificates.server(
        court.authority._signer(),
        court.authority._rest(),
        key.public_key(),
        federation="test",
        hosts=["c"],
        now=NOW,
        lifetime_s=86400.0,
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    (tmp_path / "pair.pem").write_text(pem + issued.chain)
    other = Coordinator(tmp_path / "other")
    other.pair = (tmp_path / "pair.pem", tmp_path / "pair.pem")
    found = other.latest("alice")
    other.store.close()
    assert checkpoints.check(found, court.roots) is None
    with pytest.raises(CheckpointRefused):
        checkpoints.check(msgspec.structs.replace(found, node="bob"), court.roots)


def test_a_checkpoint_that_was_damaged_is_no_licence(tmp_path: Path, anew: Coordinator) -> None:
    witnessed(tmp_path, anew)
    path = tmp_path / "ledger" / checkpoints.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        opened(tmp_path).note("approval", "x")


KEEPER = """
import sys
from pathlib import Path
from freehold.node import checkpoints
checkpoints.keep(Path(sys.argv[1]), checkpoints.parse(Path(sys.argv[2]).read_bytes()))
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path, anew: Coordinator, point: str) -> None:
    witnessed(tmp_path, anew)
    folder = tmp_path / "ledger"
    before = checkpoints.load(folder)
    door = opened(tmp_path)
    door.note("approval", "x")
    fresh = anew.shown("alice", due(door))
    (tmp_path / "fresh").write_bytes(msgspec.json.encode(fresh))
    environment = {**os.environ, "FREEHOLD_FAILPOINTS": f"{point}=kill", **paths()}
    command = [sys.executable, "-c", KEEPER, str(folder), str(tmp_path / "fresh")]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert checkpoints.load(folder) == (fresh if point.endswith("named") else before)


def test_on_a_full_disk_the_old_checkpoint_stays(tmp_path: Path, anew: Coordinator) -> None:
    witnessed(tmp_path, anew)
    door = opened(tmp_path)
    door.note("approval", "x")
    before = checkpoints.load(tmp_path / "ledger")
    with armed("node.checkpoint.writing=full"), pytest.raises(LedgerError):
        door.witnessed(anew.shown("alice", due(door)), anew.roots)
    assert checkpoints.load(tmp_path / "ledger") == before
    door.note("approval", "it goes on")
    assert [each.text for each in entries(tmp_path / "ledger")][-1] == "it goes on"


def test_a_run_whose_measures_stay_ends_with_a_checkpoint_all_the_same(tmp_path: Path, anew: Coordinator) -> None:
    """Under noise measures always stay, so the end of such a study would be witnessed by chance only."""
    witnessed(tmp_path, anew)
    door = opened(tmp_path)
    door.note("approval", "one more")
    assert door.witnessed(anew.shown("alice", due(door)), anew.roots) == []
    door.refuse(OwnerDenied("no"), run="r-0", round=3)
    assert door.head() is None, "a refusal to train is no end"
    door.refuse(BenefitKept("kept"), run="r-0", round=4, measures=True)
    head = due(door)
    assert door.witnessed(anew.shown("alice", head), anew.roots) == [] and door.head() is None
    kept = checkpoints.load(tmp_path / "ledger")
    assert kept is not None and kept.head is not None and kept.head.n == head.n
    door.close()
