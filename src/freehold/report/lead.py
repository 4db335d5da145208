"""Which row a report leads with, and whether training alone is the one to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.report.result import Comparison, Row
from freehold.report.summary import RowSummary

USUAL = frozenset({"local", "fedavg", "fedavg-finetuned", "fedavg-intercept", "ditto"})
"""Algorithms that anybody would compare first; `select` chooses among them."""

MANY_ROWS = 5
"""With more rows than this beside the usual ones, the best of all on validation data is partly luck, and does not lead."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What a report leads with.

    `row`: the row it speaks of, never training alone. `alone`: training alone, if it did at least as well on validation
    data, else None. `why`: "asked" (a plan's own algorithm), "validation", "usual" (so many rows were compared that
    only the usual ones may lead) or "test" (there is no validation data). `compared`: rows beside training alone.
    """

    row: Row
    alone: Row | None
    why: str
    compared: int

    @property
    def highlighted(self) -> Row:
        """The row to mark in a table: the one that was asked for, or the one to choose."""
        return self.row if self.why == "asked" or self.alone is None else self.alone


def lead(comparison: Comparison, summaries: Sequence[RowSummary]) -> Lead | None:
    """The row that was asked for, or else the best on validation data (on test data if no row has any) of those that a
    federation could run; None if there is none besides training alone."""
    by_name = {summary.name: summary for summary in summaries}
    rows = [row for row in comparison.rows if not row.reference and row.name != comparison.baseline]
    candidates = [row for row in rows if by_name[row.name].mean is not None]
    if not candidates:
        return None
    figure = "validation" if any(by_name[row.name].validation is not None for row in candidates) else "mean"
    sign = 1 if comparison.higher_is_better else -1

    def rank(row: Row) -> float:
        value: float | None = getattr(by_name[row.name], figure)
        return float("-inf") if value is None else sign * value

    compared = [row for row in candidates if row.algorithm != "select"]
    usual = [row for row in compared if row.algorithm in USUAL]
    why = "validation" if figure == "validation" else "test"
    among = candidates
    if usual and len(compared) - len(usual) > MANY_ROWS:
        why, among = "usual", usual
    best_other = max(among, key=rank)
    asked = next((row for row in rows if row.name == comparison.asked), None)
    alone = comparison.row(comparison.baseline)
    known = alone is not None and alone.name in by_name and by_name[alone.name].validation is not None
    stays = alone is not None and known and figure == "validation" and rank(alone) >= rank(asked or best_other)
    return Lead(
        row=asked or best_other,
        alone=alone if stays else None,
        why="asked" if asked else why,
        compared=len(compared),
    )


def luckiest(comparison: Comparison, summaries: Sequence[RowSummary]) -> Row | None:
    """The best of all rows on validation data; None without any."""
    sign = 1 if comparison.higher_is_better else -1
    rows = {row.name: row for row in comparison.rows if not row.reference}
    ranked = [(sign * each.validation, each.name) for each in summaries if each.validation is not None and each.name in rows]
    return rows[max(ranked, key=lambda item: item[0])[1]] if ranked else None
