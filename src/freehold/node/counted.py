"""How many records a table has at most, counted by the guard itself: record-level ε falls with their number."""

from __future__ import annotations

import csv
from pathlib import Path

from freehold.errors import DataUnfit
from freehold.node.withheld import can_withhold


def most_records(table: Path) -> int | None:
    """The rows of a CSV table below its header; None for Parquet, which the guard doesn't read. Raises DataUnfit."""
    if not can_withhold(table):
        return None
    csv.field_size_limit(1 << 27)
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return max(sum(1 for row in csv.reader(file) if row) - 1, 0)
    except (OSError, csv.Error) as error:
        raise DataUnfit(
            f"The records of the data could not be counted ({type(error).__name__}).",
            hint="Look at the file with `freehold data check`; nothing was trained.",
        ) from None


def checked_records(claimed: int, table: Path) -> int:
    """The training examples that a trainer claims; raises DataUnfit for more than the table has.

    They are fewer than its rows, by a split that only the task knows. So a trainer that lies can halve the ε that is charged; it
    could as well leave out its noise, which is why record-level privacy is for tasks that the owner trusts.
    """
    most = most_records(table)
    if claimed < 0 or (most is not None and claimed > most):
        raise DataUnfit(
            f"The training code claims {claimed} training examples; the table has {most} records.",
            hint="Its code is not to be trusted with record-level privacy; nothing was trained.",
        )
    return claimed
