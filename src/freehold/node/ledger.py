"""The ledger: what left this node, what it refused and what its owner decided; a line is on the disk before a byte leaves.

<state>/ledger/ledger.jsonl   the lines (see `freehold.node.lines`)        <state>/ledger/key.pem   the key that signs them
The guard alone writes, one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from freehold import durable
from freehold.errors import LedgerDamaged, LedgerError, StateInUse
from freehold.node.lines import FORMAT, LIMIT_BYTES, START, Head, Key, Line, digest, is_signed, key_in, last_line, parse, unusable

FILE = "ledger.jsonl"
LOCK_S = 5.0
"""Waited for another guard that is about to end."""


class Ledger:
    """Appends lines; raises LedgerError, after which nothing may be sent, where a line cannot be put on the disk."""

    def __init__(self, folder: Path, *, node: str, clock: Callable[[], float] = time.time) -> None:
        """Open or begin the ledger in `folder`; StateInUse while another guard has it, LedgerDamaged if its end is no end."""
        self._folder, self._clock = folder, clock
        self._fd = -1
        self.torn = 0
        """Bytes of a line that was being written when its guard died: who waited for it was told nothing, and sent nothing."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(folder, error) from None
        try:
            self._open(node)
        except BaseException:
            self.close()
            raise

    def _open(self, node: str) -> None:
        self._take()
        self.key: Key = key_in(self._folder)
        self.head, self.last = Head(0, START), Line(prev=START, n=0, time=0.0, kind="")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._folder / FILE, flags, 0o600)
            durable.sync_folder(self._folder)
            line, whole = last_line(self._fd)
            self.torn = os.fstat(self._fd).st_size - whole
            if line:
                self._stand_on(line)
            if self.torn:
                os.ftruncate(self._fd, whole)
        except OSError as error:
            raise unusable(self._folder, error) from None
        if not line:
            self.append(Line(prev="", n=0, time=0.0, kind="opened", peer=node, key=self.key.public, format=FORMAT))

    def _take(self) -> None:
        """Take the lock; the guard of an agent that was killed has it for a moment yet."""
        until = time.monotonic() + LOCK_S
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StateInUse(
                        f"Another guard has the ledger in {self._folder}.",
                        hint="Stop the other node, or give this one another --state.",
                    ) from None
                time.sleep(0.02)

    def _stand_on(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):
            self.last = parse(line)
        if self.last.n < 1 or not is_signed(line, self.key.public):
            raise LedgerDamaged(
                f"The last line of the ledger in {self._folder} was not written by this node.",
                hint="`freehold ledger verify` says what is wrong. Restore ledger and budget from the same backup.",
            )
        self.head = Head(self.last.n, digest(line))

    def append(self, line: Line) -> Head:
        """Write a line, whose place, time and budget this fills in; returns once it is on the disk."""
        given = {
            name: value
            for name in Line.__struct_fields__
            if (value := getattr(line, name)) is not None and name not in ("prev", "n", "time")
        }
        made = Line(
            **{"budget": self.last.budget, **given},
            prev=self.head.hash,
            n=self.head.n + 1,
            time=round(self._clock(), 3),
        )
        body = self.key.sign(made)
        if len(body) > LIMIT_BYTES:
            raise LedgerError(f"A line of {len(body)} bytes is too long.", hint="This is a defect; please report it.")
        try:
            before = os.fstat(self._fd).st_size
        except OSError as error:
            raise unusable(self._folder, error) from None
        try:
            durable.append(self._fd, body + b"\n", point="node.ledger")
        except OSError as error:
            try:
                os.ftruncate(self._fd, before)
            except OSError:
                self.close()  # what is on the disk now, only opening it anew can tell
            raise unusable(self._folder, error) from None
        self.head, self.last = Head(made.n, digest(body)), made
        return self.head

    def close(self) -> None:
        """Let another guard have it."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
