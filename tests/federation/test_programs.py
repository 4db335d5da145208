"""Programs that go on: a coordinator with a token to print and metrics, and a first node that is alone."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.wire.jointoken import JoinToken
from tests.federation.programs import Running, freehold, left_behind, short_folder
from tests.ports import free_port


@pytest.fixture
def home() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_coordinator_prints_a_token_when_asked_and_serves_metrics(home: Path) -> None:
    port, metrics = free_port(), free_port()
    arguments = ("--port", str(port), "--metrics-port", str(metrics), "--name", "localhost", "--print-token")
    coordinator = Running(home, "coordinator", "start", *arguments)
    assert coordinator.wait_for("Coordinator of federation").split()[-1] == f"https://localhost:{port}"
    JoinToken.parse(coordinator.wait_for("fh1."))
    coordinator.wait_for("Stop with Ctrl-C")
    started = next(line for line in coordinator.seen if line.startswith("{"))
    assert json.loads(started)["event"] == "coordinator.started"
    assert get(f"http://127.0.0.1:{metrics}/readyz") == "ok\n"
    assert 'freehold_nodes{state="connected"} 0.0' in get(f"http://127.0.0.1:{metrics}/metrics")
    taken = freehold(home, "coordinator", "start", "--state", home / "other", "--port", str(port))
    assert taken.returncode == 1
    assert "Cannot listen" in taken.stderr
    assert coordinator.stop(signal.SIGINT) == 0
    assert left_behind(home) == []


def test_a_first_node_starts_a_coordinator_of_its_own(home: Path) -> None:
    alice = Running(home, "node", "start", "--name", "alice", "--port", "0")
    url = alice.wait_for("coordinator of its own").split()[-1]
    page = alice.wait_for("Its page").split()[-1]
    alice.wait_for("token create --node bob")
    assert "hungary.csv" in alice.wait_for("node start --name bob")
    alice.wait_for("coordinator.connected")
    told = json.loads(get(page + "status.json"))
    assert (told["node"], told["coordinator"], told["state"]) == ("alice", url, "connected")
    assert alice.stop() == 0
    assert left_behind(home) == []
    again = Running(home, "node", "start", "--name", "alice")
    assert again.wait_for("coordinator of its own").split()[-1] == url
    again.wait_for("coordinator.connected")
    assert again.stop(signal.SIGINT) == 0
    assert left_behind(home) == []
