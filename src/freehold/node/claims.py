"""What training code says of how much data there is. It is whole, and it stays: a number that may change each round is a channel.

One number each, for a run and a split, as long as the table on the disk is the same one. They are on the disk before anything
leaves that says them: a guard that starts anew holds training code to the same numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from freehold import durable
from freehold.errors import LedgerError, ReleaseRefused
from freehold.plan import Training
from freehold.wire.local import is_sealed
from freehold.wire.messages import Measured

_BLOCK_BYTES = 512
"""In which the kernel counts what a file takes."""


Said = tuple[tuple[int, ...], float]
"""Which table, and the number."""


class Claims:
    """Of one study on one table."""

    def __init__(self, table: str, kept: Path) -> None:
        """`table`: the path of the owner's own file; it need not be there. `kept`: the file of these claims."""
        self._table, self._kept = table, kept
        self._said: dict[str, Said] = {}

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
        said, name = (_version(self._table), value), " ".join(what)
        if self._said.get(name) == said:
            return
        self._said = self._read()  # what another one of the same study has heard meanwhile, or this guard's predecessor
        known = self._said.get(name, said)
        if known[0] == said[0] and known[1] != value:
            raise _refused("another number of examples than before")
        if self._said.get(name) != said:
            self._write({**self._said, name: said})

    def _read(self) -> dict[str, Said]:
        try:
            return msgspec.json.decode(self._kept.read_bytes(), type=dict[str, Said])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise LedgerError(
                f"{self._kept} cannot be read ({type(error).__name__}), so nobody knows what training code has claimed.",
                hint="Look at its owner and mode. Deleted, it lets that study's code choose its numbers once more.",
            ) from None

    def _write(self, said: dict[str, Said]) -> None:
        try:
            self._kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._kept, msgspec.json.encode(said), point="node.claims")
        except OSError as error:
            raise LedgerError(
                f"{self._kept} cannot be written: {error.strerror}.", hint="Make room on the disk; nothing was sent."
            ) from None
        self._said = said


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
