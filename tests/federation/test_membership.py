"""Who is denied, has left or was replaced is out at once, and nobody waits for it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.coordinator.presence import CONNECTED_S
from freehold.node import credentials
from freehold.plan import Contribution, runs_of
from freehold.wire.admin import Done, Status, Subject
from freehold.wire.messages import Leave, Train, WorkRequest, encode
from freehold.wire.routes import CONTRIBUTE, LEAVE, SHA256_HEADER, VERSION_HEADER, WEIGHT_HEADER, WORK
from tests.federation.harness import Federation, heart_plan
from tests.federation.peer import Peer, good, joined, packed


@pytest.fixture
def bare(tmp_path: Path, fork: Path) -> Iterator[Federation]:
    """A coordinator without nodes."""
    found = Federation(tmp_path, [], fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def asked(federation: Federation, **policy: object) -> tuple[str, str, Contribution]:
    """A study of one node and one round."""
    plan = heart_plan("fedavg", name="small", rounds=1, nodes=1)
    plan = msgspec.structs.replace(plan, round=msgspec.structs.replace(plan.round, **policy))
    run = runs_of(plan)[0]
    return federation.run(plan), run.id, run.contribution


def test_a_denied_node_is_cut_off_and_not_waited_for(bare: Federation, tmp_path: Path) -> None:
    zed, yan = joined(bare, "zed", tmp_path), joined(bare, "yan", tmp_path)
    zed.work(), yan.work()
    bare.admin.post("/v1/deny", Subject(name="node/zed", reason="test"), Done)
    assert zed.is_cut()
    assert zed.post(WORK.path, WorkRequest()).code == 404
    bare.coordinator.stop()
    bare.start_coordinator()
    zed.close(), yan.close()
    assert zed.post(WORK.path, WorkRequest()).code == 404, "a restart has not forgotten it"
    digest, run, spec = asked(bare)
    work = yan.work(wait_s=30.0).work
    assert isinstance(work, Train) and work.cohort == 1
    assert yan.contribute(run, 0, packed(good(spec))).code == 0
    assert yan.work(wait_s=30.0).work is not None
    assert yan.decline(run, 1).code == 0
    bare.finished(digest)
    bare.admin.post("/v1/allow", Subject(name="node/zed"), Done)
    assert zed.post(WORK.path, WorkRequest()).code == 0
    zed.close(), yan.close()


def test_a_node_that_left_is_out_on_all_its_connections(bare: Federation, tmp_path: Path) -> None:
    zed, again = joined(bare, "zed", tmp_path), Peer(bare, "zed", credentials.load(tmp_path / "zed"))
    zed.work(), again.work()
    assert zed.post(LEAVE.path, Leave()).code == 0
    assert zed.post(WORK.path, WorkRequest(datasets=["heart"])).code == 404
    assert again.is_cut()
    assert again.post(WORK.path, WorkRequest(datasets=["heart"])).code == 404
    assert bare.admin.get("/v1/status", Status).nodes == []
    zed.close(), again.close()


def test_a_name_that_joins_again_is_another_machine(bare: Federation, tmp_path: Path) -> None:
    old = joined(bare, "zed", tmp_path / "old")
    old.work()
    new = joined(bare, "zed", tmp_path / "new")
    assert old.is_cut()
    assert old.post(WORK.path, WorkRequest()).code == 404
    assert new.post(WORK.path, WorkRequest()).code == 0
    old.close(), new.close()


def test_a_serial_that_is_denied(bare: Federation, tmp_path: Path) -> None:
    zed, yan = joined(bare, "zed", tmp_path), joined(bare, "yan", tmp_path)
    zed.work(), yan.work()
    told = ssl._ssl._test_decode_cert(str(tmp_path / "zed" / "identity" / "current.pem"))  # type: ignore[attr-defined]
    bare.admin.post("/v1/deny", Subject(name=str(told["serialNumber"])), Done)
    assert zed.is_cut()
    assert zed.post(WORK.path, WorkRequest()).code == 404
    kept = yan._http
    assert yan.work() is not None and yan._http is kept, "nobody else's connection was cut"
    zed.close(), yan.close()


def test_a_round_that_everybody_declined_is_asked_again(bare: Federation, tmp_path: Path) -> None:
    """Even by a coordinator that was started anew meanwhile, which once could not start with an empty cohort."""
    yan = joined(bare, "yan", tmp_path)
    yan.work()
    digest, run, spec = asked(bare, deadline_s=2.0)
    assert isinstance(yan.work(wait_s=30.0).work, Train)
    assert yan.decline(run, 0).code == 0
    yan.close()
    bare.coordinator.stop()
    bare.start_coordinator()
    assert isinstance(yan.work(wait_s=30.0).work, Train)
    assert yan.contribute(run, 0, packed(good(spec))).code == 0
    assert yan.work(wait_s=30.0).work is not None
    assert yan.decline(run, 1).code == 0
    assert bare.finished(digest).rounds[0].heard == ["yan"]
    yan.close()


def test_a_node_that_vanishes_is_gone_at_once_and_comes_back(bare: Federation, tmp_path: Path) -> None:
    """Long before a minute has passed in which nothing was heard of it."""
    zed, yan = joined(bare, "zed", tmp_path), joined(bare, "yan", tmp_path)
    zed.work(), yan.work()

    def seen() -> dict[str, bool]:
        nodes = bare.admin.get("/v1/status", Status).nodes
        assert all(time.time() - node.last_seen < CONNECTED_S for node in nodes), "by then it is silent anyhow"
        return {node.name: node.connected for node in nodes}

    def last() -> float:
        return next(node.last_seen for node in bare.admin.get("/v1/status", Status).nodes if node.name == "zed")

    before = last()
    body = encode(WorkRequest(datasets=["heart"], wait_s=30.0))
    with zed.raw() as tls:
        tls.sendall(f"POST {WORK.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        bare.until(lambda: last() > before)
        # What a kill does: the kernel ends the connection.
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bare.until(lambda: seen() == {"yan": True, "zed": False})
    zed.work()
    assert seen() == {"yan": True, "zed": True}
    zed.close()
    assert seen() == {"yan": True, "zed": True}, "who hangs up between two questions is still there"
    yan.close()


def test_of_two_uploads_of_a_node_at_once_the_later_one_counts(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, [], fork=fork, settings={"small_bytes": 0})
    federation.start()
    try:
        zed = joined(federation, "zed", tmp_path)
        zed.work()
        _, run, spec = asked(federation)
        assert isinstance(zed.work(wait_s=30.0).work, Train)
        body, path = packed(good(spec)), CONTRIBUTE.path.format(run=run, round=0)
        fields = {VERSION_HEADER: "1", SHA256_HEADER: "0" * 64, WEIGHT_HEADER: "1.0", "Content-Length": str(len(body))}
        head = "\r\n".join([f"PUT {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in fields.items()), "", ""])
        with zed.raw() as first:
            first.sendall(head.encode() + body[:-1])
            federation.until(lambda: any((tmp_path / "coordinator" / "blobs").glob(".incoming-*")))
            assert zed.contribute(run, 0, body).code == 0
            with contextlib.suppress(ConnectionError):
                assert first.recv(1) == b"", "it is cut, and told nothing"
        zed.close()
    finally:
        federation.stop()


def test_a_node_that_is_stopped_in_order_is_not_waited_for_and_comes_back(tmp_path: Path, fork: Path) -> None:
    federation, held = Federation(tmp_path, ["cleveland", "hungary"], fork=fork), tmp_path / "held"

    def connected() -> list[str]:
        return [node.name for node in federation.admin.get("/v1/status", Status).nodes if node.connected]

    try:
        federation.start_coordinator()
        federation.start_node("cleveland")
        federation.start_node("hungary", f"trainer.answering=hold:{held}@3")
        assert connected() == ["cleveland", "hungary"]
        plan = heart_plan("scaffold-uniform", name="stopping", rounds=3, nodes=2)
        digest = federation.run(plan)
        federation.until(held.exists)
        assert federation.nodes["hungary"].stop() == 0
        federation.coordinator.wait_for("round.closed", run=runs_of(plan)[0].id, round=1, heard=1)
        assert connected() == ["cleveland"]
        held.unlink(missing_ok=True)
        federation.start_node("hungary")
        assert connected() == ["cleveland", "hungary"]
        heard = {each.round: each.heard for each in federation.finished(digest).rounds}
        assert heard[0] == ["cleveland", "hungary"] and heard[1] == ["cleveland"]
    finally:
        federation.stop()


def test_a_node_that_is_killed_while_it_trains_takes_part_again_at_once(tmp_path: Path, fork: Path) -> None:
    """Its guard and trainer would go on for long: they end with their agent, and what they hold is free for the next one."""
    names, held = ["cleveland", "hungary"], tmp_path / "held"
    federation = Federation(tmp_path, names, fork=fork)
    try:
        federation.start_coordinator()
        federation.start_node("cleveland")
        federation.start_node("hungary", f"trainer.answering=hold:{held}@2")  # it opens the study, and trains
        plan = heart_plan("scaffold-uniform", name="killed", rounds=2, nodes=2)
        digest = federation.run(plan)
        federation.until(held.exists)
        federation.nodes["hungary"].kill()
        federation.start_node("hungary")
        heard = {each.round: each.heard for each in federation.finished(digest).rounds}
        assert heard[0] == heard[1] == names
    finally:
        federation.stop()
