"""What the ledger says has left is what has left: as plain text at a proxy that terminates TLS, and on the interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.federation import plugged
from freehold.node.audit import entries
from freehold.node.control import waiting
from freehold.node.ledger import FILE
from freehold.node.lines import Line
from freehold.plan import AlgorithmRef, Plan, RoundPolicy, TaskRef, Training
from freehold.testing import forkserver
from freehold.wire.admin import Status
from freehold.wire.routes import MEASURES
from tests.federation.apart import Apart
from tests.federation.harness import Federation, heart_plan, with_spec
from tests.federation.namespaces import FAR, NEAR, Networks, possible
from tests.federation.programs import freehold
from tests.federation.terminator import Request, Terminator

NODES = ["cleveland", "hungary"]
WATCHED = "cleveland"


def lines_of(federation: Federation, name: str) -> list[Line]:
    return list(entries(federation.folder / name / "ledger"))


def controlled(federation: Federation, name: str) -> dict[str, tuple[int, int]]:
    """Kind -> messages and bytes, of the lines and of what is in none yet."""
    found: Counter[tuple[str, int]] = Counter()
    for counts in [waiting(federation.folder / name), *(line.kinds or {} for line in lines_of(federation, name))]:
        for kind, pair in counts.items():
            for index in (0, 1):
                found[kind, index] += pair[index]
    return {kind: (found[kind, 0], found[kind, 1]) for kind, _ in found}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("bytes"), NODES, fork=fork, settings={"poll_s": 0.5})
    found.start_coordinator()
    state = found.folder / WATCHED
    watched = Terminator(found.port, server=found.folder / "coordinator" / "server.pem", node=state / "identity" / "current.pem")
    found.urls[WATCHED] = f"https://127.0.0.1:{watched.port}"
    found.watched = watched  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        found.stop()
        watched.close()


def test_each_byte_that_left_is_in_the_ledger(federation: Federation) -> None:
    """Contributions and measures one by one, by length and digest; all others, from joining to the goodbye, in number and sum."""
    for name in NODES:
        federation.start_node(name)
    for index, algorithm in enumerate(("ditto", "fedavg")):
        federation.finished(federation.run(heart_plan(algorithm, name=f"bytes-{index}", rounds=3, nodes=len(NODES))))
    assert federation.nodes[WATCHED].stop() == 0
    requests: list[Request] = federation.watched.requests  # type: ignore[attr-defined]
    own = [each for each in requests if each.method == "PUT" or each.path == MEASURES.path]
    told = [line for line in lines_of(federation, WATCHED) if line.kind in ("contribution", "measures")]
    assert [(line.bytes, line.sha256) for line in told] == [(each.length, each.sha256) for each in own]
    assert len(told) == 2 * (3 + 1) and {line.verdict for line in told} == {"sent"}
    lines = lines_of(federation, WATCHED)
    assert {line.kind for line in lines} == {"opened", "started", "policy", "contribution", "measures", "control"}
    assert [line.sandbox for line in lines if line.kind == "started"] == ["none"]
    others = [each for each in requests if each not in own]
    counts = controlled(federation, WATCHED)
    assert sum(messages for messages, _ in counts.values()) == len(others)
    assert sum(size for _, size in counts.values()) == sum(each.length for each in others)
    assert counts.keys() >= {"ca", "enroll", "work"} and "other" not in counts and "again" not in counts
    polls = [each for each in others if each.path == "/v1/work"]
    assert counts["work"] == (len(polls), sum(each.length for each in polls))
    federation.start_node(WATCHED)


def test_what_is_sent_again_is_counted_again(federation: Federation, tmp_path: Path) -> None:
    """The connection breaks under a contribution: what leaves twice is there as a line, and once more as a control message."""
    federation.nodes[WATCHED].stop()
    watched: Terminator = federation.watched  # type: ignore[attr-defined]
    held = tmp_path / "held"
    federation.start_node(WATCHED, f"agent.sending=hold:{held}@1")
    digest = federation.run(heart_plan("fedavg", name="again", rounds=1, nodes=len(NODES)))
    federation.until(held.exists)
    federation.coordinator.kill()  # it does not answer to what is sent next, and the proxy hangs up
    held.unlink()
    federation.nodes[WATCHED].wait_for("coordinator.unreachable")
    federation.start_coordinator()
    federation.finished(digest)
    federation.nodes[WATCHED].stop()
    sent = sum(each.length for each in watched.requests)
    lines = [line.bytes or 0 for line in lines_of(federation, WATCHED) if line.kind in ("contribution", "measures")]
    total = sum(lines) + sum(size for _, size in controlled(federation, WATCHED).values())
    assert "again" in controlled(federation, WATCHED) and sent <= total
    federation.start_node(WATCHED)


def test_the_coordinator_witnesses_it_and_a_tail_that_was_cut_off_is_found(federation: Federation, tmp_path: Path) -> None:
    federation.finished(federation.run(heart_plan("fedavg", name="witnessed", rounds=2, nodes=len(NODES))))
    folder = federation.folder / WATCHED / "ledger"

    def caught_up() -> bool:
        told = {node.name: node for node in federation.admin.get("/v1/status", Status).nodes}[WATCHED]
        kept = folder / "checkpoint.json"
        shown = json.loads(kept.read_bytes())["head"]["n"] if kept.exists() else -1
        return told.ledger_lines == shown and lines_of(federation, WATCHED)[shown - 1].kind in ("measures", "control")

    federation.until(caught_up)
    asked = freehold(tmp_path / "home", "ledger", "verify", "--state", folder.parent, "--coordinator", "--json")
    found = json.loads(asked.stdout)
    assert asked.returncode == 0 and found["good"] and found["checkpoint"]["n"] <= found["lines"], asked
    federation.nodes[WATCHED].stop()
    shorter = tmp_path / "shorter"
    shutil.copytree(folder.parent, shorter)
    path = shorter / "ledger" / FILE
    kept = path.read_bytes().splitlines(keepends=True)[: found["checkpoint"]["n"] - 1]
    path.write_bytes(b"".join(kept))
    for place in ([], ["--coordinator"]):
        (shorter / "ledger" / "checkpoint.json").unlink(missing_ok=bool(place))
        if not place:
            shutil.copy(folder / "checkpoint.json", shorter / "ledger" / "checkpoint.json")
        done = freehold(tmp_path / "home", "ledger", "verify", "--state", shorter, "--json", *place)
        assert done.returncode == 1 and json.loads(done.stdout)["wrong"] == len(kept) + 1, done
    federation.start_node(WATCHED)


def test_a_node_whose_whole_folder_was_put_back_sends_nothing_and_the_operator_sees_it(
    federation: Federation, tmp_path: Path
) -> None:
    state, backup = federation.folder / WATCHED, tmp_path / "backup"
    federation.nodes[WATCHED].stop()
    shutil.copytree(state, backup)
    federation.start_node(WATCHED)
    federation.finished(federation.run(heart_plan("fedavg", name="forgotten", rounds=2, nodes=len(NODES))))
    federation.nodes[WATCHED].stop()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    federation.start_node(WATCHED)
    federation.nodes[WATCHED].wait_for("checkpoint.behind")
    federation.coordinator.wait_for("ledger.amiss", node=WATCHED)
    told = {node.name: node for node in federation.admin.get("/v1/status", Status).nodes}[WATCHED]
    assert "went back" in told.ledger_fault
    watched: Terminator = federation.watched  # type: ignore[attr-defined]
    before = len(watched.requests)
    digest = federation.run(heart_plan("fedavg", name="refused", rounds=1, nodes=1))
    federation.nodes[WATCHED].wait_for("work.refused", code=341)
    federation.finished(digest)
    assert not any(each.method == "PUT" for each in watched.requests[before:])


@pytest.mark.skipif(not possible(), reason="this user may not make network namespaces here")
def test_the_interface_shows_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model of 5 MB: at most 5 % and 8 kB for each connection above what the ledger says."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.delenv(forkserver.VARIABLE, raising=False)
    (tmp_path / "apart").mkdir()
    with plugged(tmp_path):
        plan = with_spec(
            Plan(
                name="interface",
                task=TaskRef(name="bench-5mb"),
                algorithm=AlgorithmRef(name="trivial"),
                training=Training(rounds=2, batch_size=16, steps=1),
                round=RoundPolicy(least_nodes=1),
            )
        )
        settings = {"host": NEAR, "names": [NEAR]}
        networks = Networks()
        federation = Apart(tmp_path / "apart", ["hungary"], networks=networks, fork=None, settings=settings, dataset="bench-5mb")
        try:
            federation.start()
            federation.finished(federation.run(plan))
            federation.nodes["hungary"].stop()
            sent, connections = transmitted(networks), opened(networks)
        finally:
            federation.stop()
            networks.close()
    lines = lines_of(federation, "hungary")
    own = [line.bytes or 0 for line in lines if line.kind in ("contribution", "measures")]
    total = sum(own) + sum(size for _, size in controlled(federation, "hungary").values())
    assert sum(each > 5_000_000 for each in own) == 2
    assert total <= sent <= 1.05 * total + 8192 * connections, (total, sent, connections)


def inside(networks: Networks, path: str) -> list[str]:
    shown = subprocess.run([*networks.inside(FAR), "cat", path], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


def transmitted(networks: Networks) -> int:
    """Bytes that the node's interface has sent, with every header and every acknowledgement."""
    line = next(each for each in inside(networks, "/proc/self/net/dev") if each.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


def opened(networks: Networks) -> int:
    """Connections that were opened from there."""
    names, values = (each.split() for each in inside(networks, "/proc/self/net/snmp") if each.startswith("Tcp:"))
    return int(values[names.index("ActiveOpens")])
