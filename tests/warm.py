"""Processes of their own that fork from one which has imported the heavy libraries: `freehold …` to its end, and children.

Memory, arguments, environment, exit code and output are those of a process that was started anew: only the seconds that imports
take are spared. What starting itself does is tested where the program is started as a user does (`test_streams`, `Running`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from freehold.coordinator import specification
from freehold.plan import Plan
from freehold.testing import forkserver

PRELOADED = (
    "freehold.wire.process",  # first: what is imported later takes `spawn` from there
    "polars",
    "scipy.stats",
    "sklearn.tree",
    "torch._dynamo",
    "freehold.study",
    "freehold.tasks.heart",
    "freehold.coordinator.servercode",
)
"""Nothing of `freehold.cli`, and nothing that looks at the terminal when it is imported."""


def run(arguments: list[str], environment: Mapping[str, str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `freehold` with these words; AssertionError where it takes longer."""
    asked = {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid, alive = _forked(asked, [out.fileno(), err.fileno()])
        with alive:
            if not select.select([alive], [], [], timeout_s)[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"freehold {arguments} did not end within {timeout_s} s")
            code = int(alive.recv(64))
        said, told = (_text(each) for each in (out, err))
    return subprocess.CompletedProcess(["freehold", *arguments], code, said, told)


def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
    """A child at the other end of a channel, as `freehold.wire.process.spawn` starts it."""
    asked = {"module": module, "failpoints": os.environ.get("FREEHOLD_FAILPOINTS", "")}
    return forkserver.Forked(*_forked(asked, [fd]))  # type: ignore[return-value]


def specified(plan: Plan) -> Plan:
    """The plan with the list of what its algorithms send."""
    return specification.specified(plan, spawn=spawn)


def _forked(asked: dict[str, object], fds: list[int]) -> tuple[int, socket.socket]:
    """The pid, and what first tells its exit code and then ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tempfile.TemporaryFile() as question, theirs:
        question.write(json.dumps(asked).encode())
        question.flush()
        socket.send_fds(_server(), [b"fork"], [theirs.fileno(), question.fileno(), *fds])
    return int(ours.recv(64)), ours


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read(), "utf-8")


@cache
def _server() -> socket.socket:
    """The connection to the server of this process; the server ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def preload() -> None:
    """Import what commands import; what they start then comes from the fork server where a test has one."""
    process = importlib.import_module(PRELOADED[0])
    anew = process.spawn

    def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
        return (forkserver.spawn if forkserver.VARIABLE in os.environ else anew)(module, fd)

    process.spawn = spawn  # type: ignore[attr-defined]
    for name in PRELOADED[1:]:
        importlib.import_module(name)
    gc.freeze()  # shared pages stay shared


def serve(questions: socket.socket) -> list[str]:
    """Fork on request until who asks is gone; returns in a fork that is to run the program, with its words."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        body, fds, _, _ = socket.recv_fds(questions, 64, 4)
        if not body:
            os._exit(0)
        if os.fork() == 0:  # waits for the one that runs the command
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            questions.close()
            answer, question, *rest = fds
            pid = os.fork()
            if pid == 0:
                os.close(answer)
                return _become(question, rest)
            for fd in (question, *rest):
                os.close(fd)
            with socket.socket(fileno=answer) as back:
                back.send(str(pid).encode())
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    back.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _become(question: int, fds: list[int]) -> list[str]:
    """The words that the program is then started with; a child does not return."""
    with os.fdopen(question, "rb") as file:
        file.seek(0)
        asked: dict[str, Any] = json.loads(file.read())
    if "module" in asked:
        forkserver._become(asked, fds[0])
    for number, fd in enumerate(fds, start=1):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    return list(asked["arguments"])


if __name__ == "__main__":
    preload()
    sys.argv[1:] = serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("freehold.cli", run_name="__main__", alter_sys=True)
