"""A CSV file before polars reads it: its header, whether every line fits, which line a row stands on, what it will need."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.errors import Unreadable

PROBE_BYTES = 1 << 20
_CHUNK_BYTES = 4 << 20
_LINE_BYTES = 64 << 20  # a line that is longer is none
_SEPARATORS = (",", ";", "\t", "|")
_LINE, _QUOTE = ord("\n"), ord('"')


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    """A CSV file whose structure was checked."""

    path: Path
    names: tuple[str, ...]
    separator: str
    rows: int

    def scan(self) -> pl.LazyFrame:
        """Its rows, every cell as text, read only as far as somebody asks."""
        return pl.scan_csv(
            self.path,
            has_header=False,
            skip_rows=1,
            n_rows=self.rows,
            schema={name: pl.String() for name in self.names},
            separator=self.separator,
            glob=False,
        )

    def line(self, row: int) -> int:
        """The line of the file on which row `row` starts; both the header and quoted line breaks count."""
        for first_row, starts in _row_starts(self.path):
            if row + 1 < first_row + len(starts):
                return int(starts[row + 1 - first_row])
        return row + 2


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the first megabyte tells."""

    names: tuple[str, ...]
    separator: str
    size: int  # bytes of the file
    line_bytes: float  # mean length of a line
    cell_bytes: tuple[float, ...]  # mean length of the cells of each column

    @property
    def rows(self) -> int:
        """Estimated rows of the file."""
        return max(round(self.size / self.line_bytes) - 1, 0)


def probe(path: Path) -> Probe:
    """Header and mean sizes from the first megabyte; Unreadable if this is no CSV file with a header and rows."""
    text = _beginning(path)
    size = path.stat().st_size
    first = text.split("\n", 1)[0]
    if first.count('"') % 2:
        raise Unreadable(f"The header of {path} has a line break inside quotes.", hint="Give each column a name on one line.")
    separator = max(_SEPARATORS, key=lambda each: (first.count(each), each == ","))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise Unreadable(
            f"The beginning of {path} is no CSV: {error}.", hint="Export it as CSV, with line breaks as on Linux."
        ) from error
    names = tuple(name.strip() for name in rows[0]) if rows else ()
    if not any(names):
        raise Unreadable(f"Line 1 of {path} is empty.", hint="Put the names of the columns there.")
    _refuse_names(names, path)
    body = [row for row in rows[1:] if row]
    if len(body) > 1 and size > PROBE_BYTES:
        body = body[:-1]  # cut off in the middle
    if not body:
        raise Unreadable(f"{path} has a header and no rows.", hint="Give a file with one line for each example.")
    full = [row for row in body if len(row) == len(names)] or [list(names)]
    columns = list(zip(*full, strict=True))
    line_bytes = len(text.encode()) / (text.count("\n") + (not text.endswith("\n")))
    return Probe(
        names=names,
        separator=separator,
        size=size,
        line_bytes=line_bytes,
        cell_bytes=tuple(sum(len(cell.encode()) for cell in cells) / len(cells) for cells in columns),
    )


def open_csv(path: Path, probed: Probe) -> CsvFile:
    """The file, after one pass over its bytes: UTF-8, and as many cells in each line as in the header."""
    counts, lines, total = _ragged(path, probed.separator, len(probed.names) - 1)
    if counts:
        shown = ", ".join(
            f"line {line} has {cells + 1}" if cells else f"line {line} has 1 or none"
            for line, cells in zip(lines[:3], counts[:3], strict=True)
        )
        raise Unreadable(
            f"The header of {path} has {len(probed.names)} cells, but {len(counts)} line{'s do' if len(counts) > 1 else ' does'} "
            f"not: {shown}{', ...' * (len(counts) > 3)}.",
            hint="Quote cells that hold the separator, and remove empty and broken lines.",
        )
    return CsvFile(path=path, names=probed.names, separator=probed.separator, rows=total)


def refuse_missing(path: Path) -> None:
    """Unreadable if there is no file to read at `path`."""
    # os.path answers where pathlib raises: for a path that is too long to exist.
    if os.path.isdir(path):
        raise Unreadable(f"{path} is a folder.", hint="Give a file; for one file per client use from_files.")
    if not os.path.exists(path):
        raise Unreadable(f"There is no file {_short(path)}.", hint=_nearby(path))
    if not os.path.isfile(path):
        raise Unreadable(
            f"{path} is a pipe or a device, and a table is read more than once.", hint="Save it as a file first: cat > my.csv"
        )
    if not os.access(path, os.R_OK):
        raise Unreadable(f"{path} may not be read by this user.", hint=f"Allow it: chmod u+r {path}")


def _nearby(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f"There is no folder {_short(path.parent)} either."
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix)
    return f"In that folder: {', '.join(names[:8])}." if names else "Check the path."


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


def _beginning(path: Path) -> str:
    refuse_missing(path)
    with path.open("rb") as file:
        start = file.read(PROBE_BYTES)
    if not start.strip():
        raise Unreadable(f"{path} is empty.", hint="Give a file with a header and one line for each example.")
    if start.startswith(b"PAR1"):
        raise Unreadable(f"{path} is a Parquet file.", hint="Use from_parquet, or the suffix .parquet.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable(
            f"{path} is UTF-16.", hint=f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}"
        )
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise Unreadable(f"{path} is compressed (or a spreadsheet).", hint="Unpack it, or export it as CSV.")
    text = codecs.getincrementaldecoder("utf-8")()
    try:
        decoded = text.decode(start)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, start[: error.start].count(b"\n") + 1) from error
    return decoded.removeprefix("\ufeff").replace("\r\n", "\n")


def _not_utf8(path: Path, line: int) -> Unreadable:
    return Unreadable(
        f"{path} is not UTF-8: line {line} has other bytes.",
        hint=f"Convert it: iconv -f ISO-8859-1 -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}",
    )


def _refuse_names(names: tuple[str, ...], path: Path) -> None:
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise Unreadable(f"{path} has the column {doubled[0]!r} twice.", hint="Give each column a name of its own.")
    if "" in names:
        raise Unreadable(f"Column {names.index('') + 1} of {path} has no name.", hint="Name every column in the first line.")
    if len(names) < 2:
        raise Unreadable(
            f"{path} has one column, {names[0][:40]!r}.",
            hint="Separate columns by comma, semicolon, tab or |, with names in line 1.",
        )
    if all(_is_number(name) for name in names):
        raise Unreadable(f"{path} has no header: line 1 holds numbers only.", hint="Add a first line with the column names.")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _chunks(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The bytes of the file in chunks of whole lines; Unreadable where they are not UTF-8. The last line is made to end in a
    line break."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, rest = 1, b""
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, lines + block[: max(error.start, 0)].count(b"\n")) from error
            if b"\0" in block:
                raise Unreadable(f"{path} is no text file: it has a zero byte.", hint="Export it as CSV, in UTF-8.")
            lines += block.count(b"\n")
            cut = block.rfind(b"\n") + 1
            if not cut and len(rest) > _LINE_BYTES:
                raise Unreadable(f"Line {lines} of {path} has no end in sight.", hint="Export it as CSV, with line breaks.")
            if cut:
                yield np.frombuffer(rest + block[:cut], dtype=np.uint8)
            rest = block[cut:] if cut else rest + block
    if rest:
        yield np.frombuffer(rest + b"\n", dtype=np.uint8)


def _outside(chunk: NDArray[np.uint8], inside: bool) -> tuple[NDArray[np.bool_] | None, bool]:
    """Which bytes lie outside quotes (None = all of them), and whether the chunk ends inside quotes."""
    quotes = np.flatnonzero(chunk == _QUOTE)
    if not quotes.size:
        return (None if not inside else np.zeros(len(chunk), dtype=bool)), inside
    toggles = np.zeros(len(chunk), dtype=np.uint8)
    toggles[quotes] = 1
    odd = (np.bitwise_xor.accumulate(toggles) ^ inside).astype(bool)
    return ~odd, bool(odd[-1])


def _astray(chunk: NDArray[np.uint8], inside: bool, separator: str) -> int | None:
    """Where the first quote stands that begins within a cell and is not closed on its line: readers disagree what it means."""
    quotes = np.flatnonzero(chunk == _QUOTE)
    opening = quotes[int(inside) :: 2]
    if not opening.size:
        return None
    before = np.where(opening > 0, chunk[opening - 1], _LINE)
    proper = np.isin(before, (ord(separator), _LINE, _QUOTE)) | ((opening == 3) & chunk[:3].tobytes().startswith(codecs.BOM_UTF8))
    closing = np.append(quotes, len(chunk) - 1)[int(inside) + 1 :: 2][: len(opening)]
    breaks = np.cumsum(chunk == _LINE)
    stray = opening[~proper & (breaks[closing] > breaks[opening])]
    return int(stray[0]) if stray.size else None


def _ragged(path: Path, separator: str, wanted: int) -> tuple[list[int], list[int], int]:
    """Separator counts and line numbers of rows that do not have `wanted` separators (empty lines at the end do not count),
    and the number of rows below the header."""
    counts: list[int] = []
    lines: list[int] = []
    blank: list[bool] = []
    rows, line, carried, length, inside = 0, 1, 0, 0, False
    for chunk in _chunks(path):
        breaks = chunk == _LINE
        if (stray := _astray(chunk, inside, separator)) is not None:
            raise Unreadable(
                f"Line {line + int(np.count_nonzero(breaks[:stray]))} of {path} has a quotation mark within a cell that is not "
                "closed on that line.",
                hint='Quote the whole cell and double the mark inside it: "5"" pipe".',
            )
        outside, inside = _outside(chunk, inside)
        ends = np.flatnonzero(breaks if outside is None else breaks & outside)
        marks = chunk == ord(separator)
        running = np.cumsum(marks if outside is None else marks & outside, dtype=np.int64)
        at_end = running[ends]
        per_row = np.diff(at_end, prepend=0)
        lengths = np.diff(ends, prepend=-1) - 1
        if len(per_row):
            per_row[0] += carried
            lengths[0] += length
            carried, length = int(running[-1] - at_end[-1]), int(len(chunk) - 1 - ends[-1])
        else:
            carried, length = carried + int(running[-1]), length + len(chunk)
        for bad in np.flatnonzero(per_row != wanted)[:1000]:
            counts.append(int(per_row[bad]))
            lines.append(line + int(np.count_nonzero(breaks[: ends[bad]])))
            carriage = lengths[bad] == 1 and chunk[ends[bad] - 1 : ends[bad]].tobytes() in (b"\r", b"")
            blank.append(bool(lengths[bad] == 0 or carriage))
        line += int(np.count_nonzero(breaks))
        rows += len(ends)
    if inside:
        raise Unreadable(f"{path} ends inside quotes.", hint='Close the quotation, and double quotes inside it: "".')
    while counts and blank[-1] and lines[-1] == line - 1:
        counts.pop(), lines.pop(), blank.pop()
        line, rows = line - 1, rows - 1
    return counts, lines, rows - 1


def _row_starts(path: Path) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each chunk, the number of its first row (0 = the header) and the lines on which its rows start."""
    inside, row, line, pending = False, 0, 1, 1
    for chunk in _chunks(path):
        outside, inside = _outside(chunk, inside)
        breaks = chunk == _LINE
        ends = np.flatnonzero(breaks if outside is None else breaks & outside)
        after = line + np.cumsum(breaks)[ends]
        starts = np.concatenate(([pending], after))[: len(ends)] if len(ends) else np.empty(0, dtype=np.int64)
        yield row, starts.astype(np.int64)
        if len(ends):
            pending = int(after[-1])
        row += len(ends)
        line += int(np.count_nonzero(breaks))
