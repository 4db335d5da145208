"""What training code says of how much data there is. It is whole, and it stays: a number that may change each round is a channel.

One number each, for a run and a split, as long as the table on the disk is the same one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from freehold.errors import ReleaseRefused
from freehold.plan import Training
from freehold.wire.local import is_sealed
from freehold.wire.messages import Measured

_BLOCK_BYTES = 512
"""In which the kernel counts what a file takes."""


class Claims:
    """Of one study on one table."""

    def __init__(self, table: str) -> None:
        """`table`: the path of the owner's own file; it need not be there."""
        self._table = table
        self._said: dict[tuple[str, ...], tuple[tuple[int, ...], float]] = {}

    @property
    def made(self) -> bool:
        """Whether there are any."""
        return bool(self._said)

    def weight(self, run: str, training: Training, weight: float) -> None:
        """Raise WeightRefused or ReleaseRefused for a weight that the plan does not allow, or that is no count, or a new one."""
        training.check_weight(weight)
        if not weight.is_integer() or math.copysign(1.0, weight) < 0:
            raise _refused("a weight that is no count of examples")
        self._same(("weight", run), weight)

    def examples(self, run: str, of: str, splits: Mapping[str, Measured]) -> None:
        """Raise ReleaseRefused where a split has another number of examples than before. `of`: of which model."""
        for split, told in splits.items():
            self._same(("examples", run, of, split), told.examples)

    def _same(self, what: tuple[str, ...], value: float) -> None:
        version = _version(self._table)
        known, said = self._said.get(what, (version, value))
        if known == version and said != value:
            raise _refused("another number of examples than before")
        self._said[what] = (version, value)


def whole(fds: Sequence[int]) -> bool:
    """Whether nobody can change what these show, and all of it is in memory already: a hole would be filled by who reads it."""
    return all(is_sealed(fd) and _filled(fd) for fd in fds)


def _filled(fd: int) -> bool:
    found = os.fstat(fd)
    return found.st_blocks * _BLOCK_BYTES >= found.st_size


def _version(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _refused(what: str) -> ReleaseRefused:
    return ReleaseRefused(f"Training code gave {what}.", hint="Nothing was sent; the task has to be mended.")
