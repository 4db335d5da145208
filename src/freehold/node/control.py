"""Control messages: all that leaves a node beside contributions and measures. Each is counted before it leaves.

<state>/control.json   how many have left since the guard last wrote a line of them, and with how many bytes, by kind

The agent counts and the guard takes the count up, so an idle node needs no guard for a poll. Nothing is synced to the disk:
the count survives the death of every process, not a power cut. Standard library and msgspec alone, for the agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from freehold.errors import ControlRefused, LedgerError
from freehold.wire.routes import BLOB, CA, CHECKPOINT, CONTRIBUTE, DECLINED, ENROLL, LEAVE, MEASURES, RENEW, WORK

FILE: Final = "control.json"
ROOM_BYTES: Final = 1024
"""The file has always this size, so that a disk which has filled up meanwhile does not keep a refusal from being told."""

LIMIT_BYTES: Final = 1 << 16
"""Of a message."""
BURST, PER_S = 1000.0, 50.0
"""So many at once, and so many a second for long; more wait."""

AGAIN: Final = "again"
"""The kind of what a line of its own tells of, but was sent more than once, since a connection broke."""

_KINDS: Final[Mapping[str, str]] = {
    CA.path: "ca",
    ENROLL.path: "enroll",
    RENEW.path: "renew",
    WORK.path: "work",
    DECLINED.path: "declined",
    LEAVE.path: "leave",
    CHECKPOINT.path: "checkpoint",
}
_BLOBS, _CONTRIBUTIONS = (route.path.partition("{")[0] for route in (BLOB, CONTRIBUTE))

Counts = dict[str, tuple[int, int]]
"""Kind -> messages, bytes of their bodies."""


class Control:
    """Meters the connections of one process, see `wire.client.Meter`."""

    def __init__(
        self, state: Path, *, sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state, self._sleep, self._clock = state, sleep, clock
        self._expected: set[str] = set()
        self._lock = threading.Lock()
        self._left, self._since = BURST, clock()

    def expect(self, path: str) -> None:
        """A line of the ledger tells of what goes there next: its first sending is not counted here."""
        self._expected.add(path)

    def __call__(self, method: str, path: str, length: int) -> None:
        """Count what is about to leave.

        Raises ControlRefused where it is larger than any control message, and LedgerError where it cannot be counted; then it
        must not leave.
        """
        if path in self._expected:
            self._expected.discard(path)
            return
        kind = _kind(path)
        if kind != AGAIN and length > LIMIT_BYTES:
            raise ControlRefused(
                f"A message of {length} bytes is larger than a control message may be ({LIMIT_BYTES}).",
                hint="This is a defect; please report it. Nothing was sent.",
            )
        with self._lock:
            now = self._clock()
            self._left, self._since = min(self._left + (now - self._since) * PER_S, BURST), now
            self._left -= 1.0
            wait_s = max(-self._left, 0.0) / PER_S
            with _opened(self._state) as fd:
                counts = _read(fd)
                messages, size = counts.get(kind, (0, 0))
                _write(fd, {**counts, kind: (messages + 1, size + length)})
        if wait_s:
            self._sleep(wait_s)


@contextlib.contextmanager
def taken(state: Path) -> Iterator[Counts]:
    """What has left since this was last done; set to nothing where the block ends in order. Raises LedgerError."""
    with _opened(state) as fd:
        counts = _read(fd)
        yield counts
        if counts:
            _write(fd, {})


def waiting(state: Path) -> Counts:
    """What has left and is in no line yet."""
    try:
        return _parsed((state / FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(state, error) from None


def _kind(path: str) -> str:
    if path.startswith(_BLOBS):
        return "blob"
    if path == MEASURES.path or path.startswith(_CONTRIBUTIONS):
        return AGAIN
    return _KINDS.get(path, "other")


@contextlib.contextmanager
def _opened(state: Path) -> Iterator[int]:
    fd = -1
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    except OSError as error:
        raise _unusable(state, error) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _read(fd: int) -> Counts:
    return _parsed(os.pread(fd, ROOM_BYTES, 0))


def _parsed(body: bytes) -> Counts:
    if not body.strip(b" \0"):
        return {}
    try:
        return msgspec.json.decode(body.strip(b" \0"), type=Counts)
    except msgspec.MsgspecError:
        return {"lost": (0, 0)}  # a power cut: that there were some is all that is known


def _write(fd: int, counts: Counts) -> None:
    body = msgspec.json.encode(counts).ljust(ROOM_BYTES)
    if os.pwrite(fd, body, 0) != len(body):
        raise OSError(28, "No space left on device")


def _unusable(state: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"Control messages cannot be counted in {state}: {error.strerror or type(error).__name__}.",
        hint="Make room on the disk and look at the folder's owner and mode; nothing was sent.",
    )
