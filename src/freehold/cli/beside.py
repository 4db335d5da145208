"""A federation on this machine, as real processes in a folder: what the demo runs. Whatever happens, none of them stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from freehold.errors import CoordinatorError, NodeError, Unreachable
from freehold.wire import tether
from freehold.wire.admin import Admin, NodeInfo, Status, TokenMade, TokenRequest

LIMIT_S = 120.0
LOOK_S = 0.05

T = TypeVar("T")


@dataclass(kw_only=True)
class Federation:
    """A coordinator and its nodes, all on loopback."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    logs: list[IO[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The coordinator's state folder."""
        return self.folder / "coordinator"

    @property
    def admin(self) -> Admin:
        """The coordinator's administration."""
        return Admin(self.state / "admin.sock")

    def start_coordinator(self, name: str) -> Status:
        """Start it on any free port, and wait until it answers."""
        arguments = ("coordinator", "start", "--state", str(self.state), "--federation", name, "--port", "0", "--log", "json")
        self._start("coordinator", "freehold.cli", *arguments)
        return self.wait(lambda: self.admin.get("/v1/status", Status))

    def start_node(self, name: str, data: Mapping[str, Path], url: str) -> None:
        """Start a node with a token of its own; it has joined once `nodes` lists it."""
        made = self.admin.post("/v1/tokens", TokenRequest(node=name, ttl_s=600.0), TokenMade)
        token = self.folder / f"{name}.token"
        token.touch(mode=0o600)
        token.write_text(made.token + "\n", encoding="ascii")
        tables = [part for key, path in data.items() for part in ("--data", f"{key}={path}")]
        arguments = ("--name", name, "--state", str(self.folder / name), "--coordinator", url, "--join-file", str(token))
        self._start(name, "freehold.node", *arguments, *tables, "--port", "0", "--log", "json")

    def wait_for_nodes(self, count: int) -> list[NodeInfo]:
        """Wait until so many nodes are connected."""

        def look() -> list[NodeInfo] | None:
            found = [node for node in self.admin.get("/v1/status", Status).nodes if node.connected]
            return found if len(found) >= count else None

        return self.wait(look)

    def page(self, node: str) -> str:
        """The address of a node's own page."""
        return str(json.loads((self.folder / node / "page.json").read_text(encoding="utf-8"))["url"])

    def told(self, node: str) -> dict[str, Any]:
        """What a node says of itself, on its own page."""
        url = f"{self.page(node).rstrip('/')}/status.json"

        def look() -> dict[str, Any] | None:
            with urllib.request.urlopen(url, timeout=10.0) as answer:
                found: dict[str, Any] = json.load(answer)
            return found if found["sandbox"] else None

        return self.wait(look)

    def check(self) -> None:
        """Raise for a process that has ended, with the last line that it wrote."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                said = lines[-1] if lines else "it said nothing"
                kind = CoordinatorError if name == "coordinator" else NodeError
                raise kind(f"{name} has ended with exit code {process.returncode}: {said}", hint="Is there enough memory?")

    def end(self) -> None:
        """End all processes, nodes first."""
        tether.end([process for name, process in self.processes.items() if name != "coordinator"])
        tether.end(list(self.processes.values()))
        for log in self.logs:
            log.close()

    def wait(self, look: Callable[[], T | None]) -> T:
        """What `look` finds, once it finds something."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            self.check()
            try:
                found = look()
            except Unreachable:
                found = None  # it is still starting
            if found is not None:
                return found
            time.sleep(LOOK_S)
        raise CoordinatorError(f"The federation did not get there within {LIMIT_S:.0f} s.", hint="Is the machine overloaded?")

    def _start(self, name: str, module: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.log").open("w", encoding="utf-8")
        self.logs.append(log)
        command = [sys.executable, "-m", module, *arguments]
        self.processes[name] = tether.start(command, environ=os.environ, stdout=subprocess.DEVNULL, stderr=log)


@contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """A federation whose processes all end with the block, however it ends."""
    made = Federation(folder=folder)
    try:
        yield made
    finally:
        made.end()
