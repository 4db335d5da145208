"""Processes that end with the one that started them, however that ends, and that are ended in order before."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec there is little that may be done


def start(
    command: Sequence[str], *, environ: Mapping[str, str] | None = None, stdout: IO[str] | int, stderr: IO[str] | int | None
) -> subprocess.Popen[bytes]:
    """Run a command in a session of its own, so that Ctrl-C reaches only its parent; the kernel ends it when that is gone.

    To be called from the main thread, since it is the thread's end that the kernel looks at.
    """
    parent = os.getpid()

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=None if environ is None else dict(environ),
        start_new_session=True,
        preexec_fn=tie,
    )


def end(processes: Sequence[subprocess.Popen[bytes]], *, grace_s: float = GRACE_S) -> None:
    """Tell all to stop, wait, and kill those that do not, with all that they started."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
    for process in processes:
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind
