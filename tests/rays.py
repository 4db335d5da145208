"""A Ray cluster of two nodes, as processes on the loopback, in a folder of its own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType

from tests.architecture.imports import ROOT

ALONE = [
    "--node-ip-address=127.0.0.1",
    "--num-cpus=1",
    "--num-gpus=0",
    "--object-store-memory=80000000",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--block",
]
"""Options of a node that lives beside others on one machine."""


class Cluster:
    """Two nodes with one processor each; the second can be killed. Nothing of them is left afterwards."""

    def __enter__(self) -> Cluster:
        self.folder = tempfile.mkdtemp(prefix="fhr", dir="/tmp")  # Ray's sockets lie in it, and their paths must be short
        self.nodes: list[subprocess.Popen[str]] = []
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            port, client = first.getsockname()[1], second.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        head = ["--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false"]
        try:
            self._start(*head, f"--temp-dir={self.folder}")
            self._start(f"--address={self.address}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for place in range(len(self.nodes)):
            self.kill(place)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, place: int) -> None:
        """`kill -9` of all that belongs to a node."""
        for process in _session(self.nodes[place].pid):
            try:
                held = os.pidfd_open(process)
            except ProcessLookupError:
                continue
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, signal.SIGKILL)
            assert select.select([held], [], [], 60)[0]
            os.close(held)
        node = self.nodes[place]
        node.wait()
        if node.stdout is not None:
            node.stdout.close()

    def _start(self, *options: str) -> None:
        own = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *options, *ALONE]
        node = subprocess.Popen(
            command,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.nodes.append(node)
        assert node.stdout is not None
        said = []
        for line in node.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                return
        raise AssertionError("".join(said))


def _session(leader: int) -> list[int]:
    """All processes of a session, the leader first so that it starts no others."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == leader:
                    found.append(int(name))
            except ProcessLookupError:
                continue
    return sorted(found, key=lambda pid: pid != leader)
