"""A CSV table without the columns that the owner's policy does not list: what a trainer cannot read it cannot send."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from freehold.errors import DataUnfit

_SEPARATORS = (",", ";", "\t", "|")


def can_withhold(table: Path) -> bool:
    """Whether columns can be left out of this file: it is there, and not Parquet."""
    try:
        with table.open("rb") as file:
            return file.read(4) != b"PAR1"
    except OSError:
        return False


def narrow(table: Path, columns: Sequence[str], target: Path) -> None:
    """Write the columns of `table` that are listed to `target`, mode 0600. Raises DataUnfit; `target` is then not left behind."""
    csv.field_size_limit(1 << 27)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with (
            os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as out,
            table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            first = file.readline()
            file.seek(0)
            separator = max(_SEPARATORS, key=lambda each: (first.count(each), each == ","))
            rows = csv.reader(file, delimiter=separator)
            names = next(rows, [])
            kept = [index for index, name in enumerate(names) if name.strip() in columns]
            writer = csv.writer(out, delimiter=separator, lineterminator="\n")
            writer.writerow([names[index] for index in kept])
            for row in rows:
                if row:
                    writer.writerow([row[index] if index < len(row) else "" for index in kept])
    except (OSError, csv.Error) as error:
        target.unlink(missing_ok=True)
        raise DataUnfit(
            f"Columns could not be withheld from the data ({type(error).__name__}).",
            hint="Make room on the disk, and look at the file with `freehold data check`; nothing was read by others.",
        ) from None
