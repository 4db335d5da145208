"""A process that has imported PyTorch once, and forks a trainer or a server child in a few milliseconds.

Process boundaries stay what they are in production: each fork has its own memory, is killed on its own, and gets nothing but its
channel. Only the seconds that an import takes are spared. For tests; a node in production starts Python anew.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Final

VARIABLE: Final = "FREEHOLD_FORKSERVER"
"""Path of the server's socket, for `spawn`."""

PRELOADED: Final = (
    "freehold.node.trainer",
    "freehold.node.guard",
    "freehold.coordinator.servercode",
    "freehold.tasks.heart",
    "sklearn.tree",  # what these import only when they need it
    "torch._dynamo",
)


class Forked:
    """A forked process, as much of `subprocess.Popen` as a `Child` needs."""

    def __init__(self, pid: int, alive: socket.socket) -> None:
        self.pid, self._alive = pid, alive

    def kill(self) -> None:
        """As `kill -9`."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Until it has ended: its end of the connection is then closed."""
        while self._alive.recv(1):
            pass
        self._alive.close()
        return 0


def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
    """Run `module`'s `main` in a fork of the server that the environment names."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ[VARIABLE])
    asked = {"module": module, "failpoints": os.environ.get("FREEHOLD_FAILPOINTS", "")}
    socket.send_fds(connection, [json.dumps(asked).encode()], [fd])
    pid = int(connection.recv(64))
    return Forked(pid, connection)  # type: ignore[return-value]


def _become(asked: dict[str, str], fd: int) -> None:
    from freehold import failpoints

    os.environ[failpoints.VARIABLE] = asked["failpoints"]  # for its own children
    failpoints.arm(asked["failpoints"])
    module = importlib.import_module(asked["module"])
    sys.argv = [asked["module"], str(fd)]
    code = 0
    try:
        if "spawn" in inspect.signature(module.main).parameters:
            module.main(spawn=spawn)
        else:
            module.main()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def serve(path: Path) -> None:
    """Fork on request until standard input is closed by whoever started this."""
    os.environ[VARIABLE] = str(path)
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # shared pages stay shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        body, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        if not fds:
            connection.close()  # who asked was killed before it had
            continue
        pid = os.fork()
        if pid == 0:
            listening.close()
            # The connection stays open in the child: its end tells the asker that the child has ended.
            os.set_inheritable(fds[0], True)
            _become(json.loads(body), fds[0])
        os.close(fds[0])
        with contextlib.suppress(OSError):  # who asked was killed since; the child sees its channel's end
            connection.send(str(pid).encode())
        connection.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
