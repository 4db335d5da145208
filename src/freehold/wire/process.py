"""A child process at the other end of a channel: started when first asked, started anew after it died."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from freehold.errors import PeerGone
from freehold.wire.local import Channel, pair

Spawn = Callable[[str, int], "subprocess.Popen[bytes]"]
"""(module, descriptor of its channel) -> the process that runs it."""

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "FREEHOLD_FAILPOINTS")
_KEPT_BY = {"freehold.node.guard": ("CREDENTIALS_DIRECTORY",)}
"""What one module is given beside that: the guard alone learns where the vault's key lies."""
_GIVEN = {"freehold.node.trainer": {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}}
"""As in a jail: a trainer keeps what one step gives back for the next one. Others should be small while they rest."""


def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
    """Run `python -m module FD` with a bare environment, nothing open but the channel and standard error.

    Ctrl-C on a terminal reaches all that run there; a child leaves it to who started it, and ends with its channel.
    """
    environment = {name: os.environ[name] for name in (*_KEPT, *_KEPT_BY.get(module, ())) if name in os.environ}
    # One thread each: many small processes share few cores. glibc's arenas would multiply memory. PyTorch asks for huge pages
    # where it wants much: of small ones, a large model spends more time on getting them than on training.
    environment |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "THP_MEM_ALLOC_ENABLE": "1", **_GIVEN.get(module, {})}
    command = [sys.executable, "-m", module, str(fd)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child keeps it, from its first instruction on
    try:
        return subprocess.Popen(command, pass_fds=[fd], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process that answers one message at a time. `restarts` a lost question is asked again, of a new process."""

    def __init__(
        self, module: str, replies: Any, *, spawn: Spawn = spawn, opening: Callable[[Child], None] | None = None
    ) -> None:
        """`replies`: the type of what comes back. `opening` talks to each new process before anything else does."""
        self._module, self._replies, self._spawn, self._opening = module, replies, spawn, opening
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    def ask(
        self,
        message: msgspec.Struct,
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = None,
        restarts: int = 3,
        patient: bool = False,
    ) -> tuple[Any, list[int]]:
        """The answer, and its descriptors, which the caller closes; raises PeerGone once restarts are used up, or TimeoutError.

        A process that was too slow, or answered nonsense, is killed. `patient`: one that was too slow works on, and
        `await_answer` or `end` comes next.
        """
        with self._lock:
            while True:
                try:
                    channel = self._open()
                    channel.send(message, fds)
                    return channel.receive(self._replies, timeout_s=timeout_s)
                except PeerGone:
                    self.end()
                    if restarts <= 0:
                        raise
                    restarts -= 1
                except (TimeoutError, msgspec.MsgspecError) as error:
                    if not (patient and isinstance(error, TimeoutError)):
                        self.end()
                    raise

    def start(self, *, restarts: int = 3) -> None:
        """Start the process now, if there is none, and again if it dies in its opening; raises what that raises."""
        with self._lock:
            while True:
                try:
                    self._open()
                    return
                except PeerGone:
                    if restarts <= 0:
                        raise
                    restarts -= 1

    def await_answer(self, *, timeout_s: float) -> tuple[Any, list[int]]:
        """Wait on for the answer to a question that was asked patiently; raises what `ask` does."""
        with self._lock:
            if self._channel is None:
                raise PeerGone("The process has ended.", hint="It is started again with the next question.")
            try:
                return self._channel.receive(self._replies, timeout_s=timeout_s)
            except (PeerGone, msgspec.MsgspecError):
                self.end()
                raise

    def _open(self) -> Channel:
        if self._channel is None:
            self._channel, theirs = pair()
            try:
                with theirs:
                    self._process = self._spawn(self._module, theirs.fileno())
                if self._opening is not None:
                    self._opening(self)
            except BaseException:
                self.end()  # the next question starts one that is opened
                raise
        return self._channel

    def kill(self) -> None:
        """End the process, if there is one, whoever waits for its answer."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def end(self) -> None:
        """End the process, if there is one; the next question starts another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                self._process.wait()
            self._channel = self._process = None
