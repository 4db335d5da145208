"""How much memory a table will need, and how much there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import NotEnoughMemory

READER_BYTES = 200 << 20  # what a streaming read takes at most beside its result, whatever the size of the file
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The size of a table that was not read yet."""

    rows: int
    cell_bytes: Mapping[str, float]  # column -> mean bytes of a cell's text
    file_bytes: int


def needed_bytes(extent: Extent, *, text: frozenset[str], drop: frozenset[str]) -> int:
    """Peak bytes of reading a table and preparing tensors from it.

    A number is 4 bytes in the table and 4 in the tensor; a text cell (client, target, category) is 16 bytes and its
    letters in the table, and 4 bytes a letter as numpy text; a row has 112 bytes of class index, client code, split, and
    of the Float64 columns that are worked on one at a time.
    """
    a_row = 112.0
    for name, length in extent.cell_bytes.items():
        if name in text:
            a_row += 16 + 5 * length
        elif name not in drop:
            a_row += 8
    return round(extent.rows * a_row) + min(READER_BYTES, 4 * extent.file_bytes)


def available_bytes() -> int:
    """Memory that the kernel can give without swapping (MemAvailable of /proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotEnoughMemory("/proc/meminfo has no MemAvailable.", hint="Give memory_limit_bytes.")


def refuse_too_large(extent: Extent, source: str, limit_bytes: int | None, *, text: frozenset[str], drop: frozenset[str]) -> None:
    """NotEnoughMemory if reading the table would take more than `limit_bytes` (None: what is available)."""
    there = available_bytes() if limit_bytes is None else limit_bytes
    need = needed_bytes(extent, text=text, drop=drop)
    if need <= there:
        return
    numbers = len(set(extent.cell_bytes) - text - drop)
    fit = max(extent.rows * there // need, 0)
    raise NotEnoughMemory(
        f"{source} ({_size(extent.file_bytes)}, about {extent.rows} rows, {numbers} number columns) needs about {_size(need)} "
        f"of memory; {_size(there)} {'are available' if limit_bytes is None else 'are allowed'}.",
        hint=f"Leave out columns (--drop), give fewer rows (about {fit} fit), or a machine with more memory. "
        f"A Parquet file is read faster, but its numbers need the same memory.",
    )


def _size(count: int) -> str:
    return f"{count / MIB:.3g} MiB" if count < 1000 * MIB else f"{count / (1024 * MIB):.1f} GiB"
