"""How contributions travel, in a study's words: names such as `fedavg+bfloat16`, and what rounding has cost."""

from __future__ import annotations

import math
from typing import get_args

from freehold.errors import UsageError, near_miss
from freehold.plan import Contribution, SentAs
from freehold.report import Comparison, Row
from freehold.report.summary import SHARES, seed_mean
from freehold.report.wording import change, label

ALSO = "log_loss"
"""Moves before a share of right answers does."""


def variant(name: str) -> tuple[str, SentAs | None]:
    """("fedavg", "bfloat16") of "fedavg+bfloat16"; ("fedavg", None) of "fedavg". Raises UsageError for another dtype."""
    algorithm, plus, asked = name.partition("+")
    for dtype in get_args(SentAs):
        if asked == dtype:
            return algorithm, dtype
    if plus:
        raise UsageError(
            f"{name[:80]}: contributions cannot be sent as {asked[:40] or 'nothing'}.", hint=near_miss(asked, get_args(SentAs))
        )
    return algorithm, None


def said(contribution: Contribution) -> tuple[str, ...]:
    """What a plan has contributions go through on the way, for a report; nothing where it says nothing."""
    rounded = () if contribution.dtype is None else (f"rounded to {contribution.dtype}",)
    packed = () if contribution.compression == "none" else (f"compressed with {contribution.compression}",)
    return (f"Contributions were {' and '.join((*rounded, *packed))}, as the plan says.",) if rounded or packed else ()


def costs_of_rounding(comparison: Comparison) -> tuple[str, ...]:
    """For each row beside the same algorithm unrounded: the bytes, and how far the means over clients lie apart."""
    rows = {row.name: row for row in comparison.rows}
    pairs = ((row, rows.get(row.name.partition("+")[0])) for row in comparison.rows if "+" in row.name)
    return tuple(_cost(comparison, row, plain) for row, plain in pairs if plain is not None)


def _cost(comparison: Comparison, row: Row, plain: Row) -> str:
    whole = max(plain.sent_bytes, 1)
    parts = [f"{row.title} against {plain.title}: {100 * row.sent_bytes / whole:.0f} % of the bytes"]
    for figure in dict.fromkeys((comparison.metric, *((ALSO,) if comparison.problem == "classification" else ()))):
        before = {result.seed: seed_mean(comparison, result, figure) for result in plain.results}
        apart = [
            after - first
            for result in row.results
            if (after := seed_mean(comparison, result, figure)) is not None and (first := before.get(result.seed)) is not None
        ]
        if apart:
            mean = math.fsum(apart) / len(apart)
            unit = " points" if figure in SHARES else ""
            span = f" ({change(figure, min(apart))} to {change(figure, max(apart))} by seed)" if len(apart) > 1 else ""
            parts.append(f"mean {label(figure).removesuffix(', %')} {change(figure, mean)}{unit}{span}")
    return f"{'; '.join(parts)}."
