"""Whose user id a trainer has: its node's own, and never root's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_FIRST, _COUNT = 2_000_000_000, 100_000_000
"""Above what distributions, systemd and containers give away."""

_SMALL_COUNT = 1000
_NOBODY = 65_534


def trainer_uid(seed: str, *, uid: int | None = None, uid_map: str | None = None) -> int | None:
    """None where the node is not root: the trainer then has the node's own. Else one that no account has, by `seed`.

    In a container whose user namespace has few ids it is one of the last thousand below `nobody`.
    """
    if (os.getuid() if uid is None else uid) != 0:
        return None
    lines = (Path("/proc/self/uid_map").read_text(encoding="ascii") if uid_map is None else uid_map).split("\n")
    mapped = max((int(first) + int(count) for first, _, count in (line.split() for line in lines if line.strip())), default=0)
    chosen = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    if mapped >= _FIRST + _COUNT:
        return _FIRST + chosen % _COUNT
    return max(min(mapped, _NOBODY) - 1 - chosen % _SMALL_COUNT, 1)
