"""A federation of real processes on loopback: started, killed, started again, and waited for by what they tell."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from freehold.coordinator.specification import specified
from freehold.data.heart import heart_records
from freehold.plan import Plan, RoundPolicy, dumps
from freehold.study.trials import plan_for
from freehold.tasks import task_definition
from freehold.testing import forkserver
from freehold.wire.admin import Admin, Results, Studies, StudyInfo, StudyRequest, StudyStarted, TokenMade, TokenRequest
from freehold.wire.process import spawn
from tests.ports import free_port

HOSPITALS = {"cleveland": "Cleveland", "hungary": "Hungary", "switzerland": "Switzerland", "va": "VA Long Beach"}
PATIENCE_S = 120.0


class Process:
    """One process, and the events that it tells."""

    def __init__(
        self, arguments: Sequence[str], log: Path, *, environment: Mapping[str, str], around: Sequence[str] = ()
    ) -> None:
        """`around`: a command that runs the process in surroundings of its own."""
        self.log = log
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(
                [*around, sys.executable, "-m", "tests.federation.processes", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                cwd=Path(__file__).parents[2],
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                self._events.put(json.loads(line))
        self._events.put(None)

    def wait_for(self, name: str, **fields: object) -> dict[str, Any]:
        """The next event of that name with these fields."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                event = self._events.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"no {name} {fields} within {PATIENCE_S} s; see {self.log}") from None
            assert event is not None, f"the process ended before {name}: {self.log.read_text()[-2000:]}"
            if event["event"] == name and all(event.get(k) == v for k, v in fields.items()):
                return event

    def told(self, name: str, **fields: object) -> bool:
        """Whether it has told this since what was last waited for."""
        with self._events.mutex:
            events = [event for event in self._events.queue if event is not None]
        return any(e["event"] == name and all(e.get(k) == v for k, v in fields.items()) for e in events)

    def wait_end(self) -> int:
        """Its exit code, once it has ended."""
        return self.popen.wait(PATIENCE_S)

    def kill(self) -> None:
        """As `kill -9`."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """As systemd stops it; its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.wait_end()


class Federation:
    """A coordinator and nodes over one folder."""

    results = Results

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        fork: Path | None,
        settings: Mapping[str, object] | None = None,
        dataset: str = "heart",
    ) -> None:
        """`fork` None: every process starts anew, as in production."""
        self.folder, self.names, self._dataset = folder, list(names), dataset
        self._environment = {} if fork is None else {forkserver.VARIABLE: str(fork)}
        self.settings = dict(settings or {})
        self.port = free_port()
        self.urls: dict[str, str] = {}
        """Where a node finds the coordinator, if not at `url`."""
        self.nodes: dict[str, Process] = {}
        self.admin = Admin(folder / "coordinator" / "admin.sock")
        write_hospitals(folder)

    @property
    def url(self) -> str:
        """Of the coordinator."""
        return f"https://127.0.0.1:{self.port}"

    def around(self, name: str) -> Sequence[str]:
        """The command that runs a node, or the coordinator, in surroundings of its own."""
        return ()

    def start_coordinator(self, failpoints: str = "", *, wait: bool = True) -> None:
        """Start it, and wait until it listens."""
        arguments = ["coordinator", str(self.folder / "coordinator"), str(self.port), json.dumps(self.settings)]
        self.coordinator = Process(
            arguments,
            self.folder / "coordinator.log",
            environment={**self._environment, "FREEHOLD_FAILPOINTS": failpoints},
            around=self.around("coordinator"),
        )
        if wait:
            self.coordinator.wait_for("coordinator.started")

    def start_node(
        self,
        name: str,
        failpoints: str = "",
        *,
        wait: bool = True,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node, with a token if it has not joined yet, and wait until it is connected.

        `settings`: its hours, whether it works on metered connections, and the file that says how far its clock is ahead.
        """
        state, token = self.folder / name, self.folder / f"{name}.token"
        if not (state / "identity" / "current.pem").exists():
            token.write_text(self.admin.post("/v1/tokens", TokenRequest(node=name), TokenMade).token)
        url, data = self.urls.get(name, self.url), str(self.folder / f"{name}.csv")
        arguments = ["node", name, str(state), url, str(token), data, self._dataset, json.dumps(settings or {})]
        given = {**self._environment, "FREEHOLD_FAILPOINTS": failpoints, **(environment or {})}
        self.nodes[name] = Process(arguments, self.folder / f"{name}.log", environment=given, around=self.around(name))
        if wait:
            self.nodes[name].wait_for("coordinator.connected")

    def start(self) -> None:
        """Coordinator, then all nodes at once; none is left running when one does not come up."""
        self.start_coordinator(wait=False)
        try:
            self.coordinator.wait_for("coordinator.started")
            for name in self.names:
                self.start_node(name, wait=False)
            for name in self.names:
                self.nodes[name].wait_for("coordinator.connected")
        except BaseException:
            self.stop()
            raise

    def run(self, plan: Plan) -> str:
        """Start a study; its digest."""
        return self.admin.post("/v1/studies", StudyRequest(plan=dumps(plan)), StudyStarted).digest

    def study(self, digest: str) -> StudyInfo:
        """What the coordinator says of it."""
        return next(s for s in self.admin.get("/v1/studies", Studies).studies if s.digest == digest)

    def finished(self, digest: str) -> Results:
        """What a study found, once it is finished."""
        self.until(lambda: self.study(digest).state != "running")
        assert self.study(digest).state == "finished", self.study(digest)
        return self.admin.get(f"/v1/studies/{digest}", Results)

    @staticmethod
    def until(holds: Callable[[], bool]) -> None:
        """Wait until something that no event tells of holds."""
        deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            pause.wait(0.05)

    def stop(self) -> None:
        """End everything."""
        for process in [*self.nodes.values(), self.coordinator]:
            process.popen.send_signal(signal.SIGCONT)
            process.popen.terminate()
        for process in [*self.nodes.values(), self.coordinator]:
            try:
                process.popen.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def fork_server(folder: Path) -> Iterator[Path]:
    """A fork server's socket; the server ends with the block."""
    path = folder / "fork.sock"
    command = [sys.executable, "-m", "freehold.testing.forkserver", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        try:
            yield path
        finally:
            server.kill()


def write_hospitals(folder: Path) -> None:
    """Each hospital's own table, as its node reads it."""
    records = heart_records()
    for name, hospital in HOSPITALS.items():
        records[hospital].write_csv(folder / f"{name}.csv")


def heart_plan(
    algorithm: str, *, name: str, rounds: int, nodes: int, companions: Sequence[str] = (), seed: int = 0, **changed: object
) -> Plan:
    """A plan on the heart data with its contribution spec."""
    plan = plan_for(task_definition("heart"), algorithm, companions=companions)
    training = msgspec.structs.replace(plan.training, rounds=rounds, epochs=1, seed=seed)
    policy = RoundPolicy(least_nodes=nodes)
    return with_spec(msgspec.structs.replace(plan, name=name, training=training, round=policy, **changed))


def with_spec(plan: Plan) -> Plan:
    """The plan with all that its algorithm and companions send."""
    return specified(plan, spawn=forkserver.spawn if forkserver.VARIABLE in os.environ else spawn)
