"""What is odd about a column: missing shares, hidden missing codes, ranges, units, vocabularies, constants, leaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.population import Population
from freehold.data.schema import Column

Floats = NDArray[np.float64]

_CODES = (0.0, -1.0, -9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0)  # numbers that people write for "unknown"
_LEAK = 0.99  # a column that alone tells the classes this well (balanced accuracy) is suspected to be the answer
_SAMPLE = 5000  # rows that the leak test looks at
_CONVERSIONS: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (
    ("divided by 10", lambda v: v / 10),
    ("times 10", lambda v: v * 10),
    ("divided by 100", lambda v: v / 100),
    ("times 100", lambda v: v * 100),
    ("divided by 1000", lambda v: v / 1000),
    ("times 1000", lambda v: v * 1000),
    ("converted from °F to °C", lambda v: (v - 32) / 1.8),
    ("converted from °C to °F", lambda v: v * 1.8 + 32),
    ("converted from K to °C", lambda v: v - 273.15),
    ("converted from inches to cm", lambda v: v * 2.54),
    ("converted from cm to inches", lambda v: v / 2.54),
    ("converted from lb to kg", lambda v: v * 0.45359237),
    ("converted from kg to lb", lambda v: v / 0.45359237),
    ("converted from mmol/l to mg/dl (glucose)", lambda v: v * 18.016),
    ("converted from mg/dl to mmol/l (glucose)", lambda v: v / 18.016),
    ("converted from mmol/l to mg/dl (cholesterol)", lambda v: v * 38.67),
    ("converted from mg/dl to mmol/l (cholesterol)", lambda v: v / 38.67),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One oddity. `client` None: the clients taken together; `column` None: the rows or labels as a whole."""

    client: str | None
    column: str | None
    level: Literal["error", "warning", "note"]
    text: str


def check_column(
    column: Column, values: pl.Series, *, client: str | None, coded: Mapping[str, int], everyone: pl.Series
) -> list[Finding]:
    """Findings about one client's cells. `everyone` are all clients' cells: what is a code is seen from them."""

    def finding(level: Literal["error", "warning", "note"], text: str) -> Finding:
        return Finding(client=client, column=column.name, level=level, text=f"{column.name}{text}")

    rows, missing = len(values), values.null_count()
    findings = []
    figures = {code: count for code, count in coded.items() if _is_figure(code)}
    for code, count in figures.items():
        text = f" = {code} in {count} of {rows} rows: missing, coded {code}, as the schema says."
        findings.append(finding("warning" if count > rows / 2 else "note", text))
    others = missing - sum(figures.values())
    if others:
        more = "more " if figures else ""
        findings.append(finding("warning" if others > rows / 2 else "note", f" is missing in {others} {more}of {rows} rows."))
    known = values.drop_nulls()
    if not len(known):
        return findings
    if column.kind == "category":
        strange = known.filter(~known.is_in(list(column.categories)))
        if len(strange):
            shown = ", ".join(repr(name[:20]) for name in strange.unique().sort().to_list()[:3])
            expected = ", ".join(column.categories[:8])
            text = (
                f": {len(strange)} of {rows} rows hold categories that the schema does not list ({shown}); it lists {expected}."
            )
            findings.append(finding("warning", text))
    elif column.kind == "number":
        findings += [finding(level, text) for level, text in _numbers(column, known, rows, everyone)]
    if known.n_unique() == 1 and rows > 1:
        only = known[0] if column.kind == "category" else f"{known[0]:g}"
        if not any("coded" in each.text for each in findings):
            findings.append(finding("note", f" is {only} in all {len(known)} rows where it is known: it tells nothing here."))
    return findings


def check_pooled(column: Column, values: pl.Series, population: Population) -> list[Finding]:
    """Findings about a column over all clients: the answer in disguise, or a row number."""

    def warning(text: str) -> Finding:
        return Finding(client=None, column=column.name, level="warning", text=f"{column.name} {text}")

    known = values.is_not_null().to_numpy()
    if known.sum() < 30:
        return []
    target = population.target[known]
    if column.kind == "category":
        codes = values.filter(pl.Series(known)).rank("dense").to_numpy().astype(np.float64)
    else:
        codes = values.filter(pl.Series(known)).cast(pl.Float64).to_numpy()
        span = codes.max() - codes.min()
        if column.kind == "number" and span + 1 == len(codes) and len(np.unique(codes)) == len(codes):
            return [warning("counts the rows one by one: a row number? Leave it out (--drop).")]
    if population.classes:
        share = _told(codes, target.astype(np.int64), leaves=2 * len(population.classes), by_value=column.kind == "category")
        if share >= _LEAK:
            text = f"alone tells the target in {share:.1%} of the cases (balanced): is it known before the target is?"
            return [warning(text)]
    elif column.kind == "number" and _rank_correlation(codes, target.astype(np.float64)) > 0.999:
        return [warning("rises or falls exactly with the target: is it known before the target is?")]
    return []


def _numbers(
    column: Column, known: pl.Series, rows: int, everyone: pl.Series
) -> list[tuple[Literal["error", "warning", "note"], str]]:
    figures = known.cast(pl.Float64).to_numpy()
    low = -np.inf if column.low is None else column.low
    high = np.inf if column.high is None else column.high
    has_range = np.isfinite(low) or np.isfinite(high)
    found: list[tuple[Literal["error", "warning", "note"], str]] = []
    codes = {code for code in _CODES if not low <= code <= high and (figures == code).sum() >= 2}
    if not has_range:
        codes = set(_hidden_codes(everyone.drop_nulls().cast(pl.Float64).to_numpy()))
    for code in sorted(codes):
        count = int((figures == code).sum())
        if count:
            found.append(("warning", f" = {code:g} in {count} of {rows} rows: missing, coded {code:g}?"))
    rest = figures[~np.isin(figures, list(codes))]
    outside = (rest < low) | (rest > high)
    if not outside.any():
        return found
    limits = f"{_bound(column.low)} to {_bound(column.high)}{f' {column.unit}' if column.unit else ''}"
    conversion = _conversion(rest, low, high) if outside.mean() > 0.5 and np.isfinite([low, high]).all() else None
    if conversion:
        text = f": {int(outside.sum())} of {rows} values lie outside {limits}; {conversion} they fit: another unit?"
        found.append(("error", text))
        return found
    sides = [(int((rest < low).sum()), "below"), (int((rest > high).sum()), "above")]
    counts = " and ".join(f"{count} {side}" for count, side in sides if count)
    found.append(("error" if outside.mean() > 0.5 else "warning", f": {counts} the declared range, {limits}, of {rows} rows."))
    return found


def _hidden_codes(values: Floats) -> list[float]:
    """Candidates that occur at least three times at the edge of a column of many values, far from all others."""
    codes = []
    for code in _CODES:
        others = values[values != code]
        if len(values) - len(others) < 3 or len(np.unique(others)) < 10:
            continue
        low, high = others.min(), others.max()
        spread = np.quantile(others, 0.95) - np.quantile(others, 0.05)
        gap = low - code if code < low else code - high
        if gap > 0.3 * spread > 0:
            codes.append(code)
    return codes


def _conversion(values: Floats, low: float, high: float) -> str | None:
    """The conversion that brings the most values into the range, if that is nearly all of them."""
    shares = [(float(((low <= convert(values)) & (convert(values) <= high)).mean()), name) for name, convert in _CONVERSIONS]
    share, name = max(shares, key=lambda pair: pair[0])
    return name if share >= 0.9 else None


def _told(values: Floats, target: NDArray[np.int64], *, leaves: int, by_value: bool) -> float:
    """Balanced accuracy of the best rule on this column alone: a few cuts, or a class for each category."""
    if len(values) > _SAMPLE:
        chosen = np.random.default_rng(0).choice(len(values), _SAMPLE, replace=False)
        values, target = values[chosen], target[chosen]
    classes, counts = np.unique(target, return_counts=True)
    if len(classes) < 2 or counts.min() < 5:
        return 0.0
    depth: dict[str, Any] = {"max_leaf_nodes": None if by_value else leaves, "class_weight": "balanced", "random_state": 0}
    from sklearn.tree import DecisionTreeClassifier  # here: it takes a second to import

    said = DecisionTreeClassifier(**depth).fit(values[:, None], target).predict(values[:, None])
    return float(np.mean([(said[target == each] == each).mean() for each in classes]))


def _rank_correlation(a: Floats, b: Floats) -> float:
    ranks = [pl.Series(each).rank().to_numpy() for each in (a, b)]
    if min(float(each.std()) for each in ranks) == 0:
        return 0.0
    return float(abs(np.corrcoef(ranks[0], ranks[1])[0, 1]))


def _is_figure(code: str) -> bool:
    try:
        float(code)
    except ValueError:
        return False
    return True


def _bound(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"
