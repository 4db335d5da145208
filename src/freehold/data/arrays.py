"""A population from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from freehold.data import cells
from freehold.data.labels import read_labels
from freehold.data.overlap import refuse_overlap
from freehold.data.population import SPLITS, Population, Problem
from freehold.data.schema import Target
from freehold.errors import BadValue, DataError, Unreadable


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    client: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    problem: Problem | None = None,
    split: ArrayLike | None = None,
    group: ArrayLike | None = None,
    time: ArrayLike | None = None,
    name: str = "arrays",
) -> Population:
    """A population of x [T, ...] numbers, y [T] labels or numbers, and client [T] names, as numpy arrays or what becomes one.

    `classes` names the classes of y = 0..K-1; without it labels of any kind are put in order. An array has no missing
    values: BadValue names the first one (from_frame can impute).
    """
    features = _features(x)
    values = _column(y, "y", len(features))
    if classes is not None:
        target = Target(name="y", kind="class", classes=tuple(map(str, classes)))
        values = _named(values, target.classes)
        labels = read_labels(values, name="y", declared=target, problem=problem)
    else:
        labels = read_labels(values, name="y", declared=None, problem=problem)
    times = None if time is None else np.asarray(time)
    if times is not None and times.dtype.kind == "M":
        times = times.astype("datetime64[us]").astype(np.int64)
    population = Population(
        name=name,
        features=features,
        target=labels.values,
        client=_column(client, "client", len(features), label=False).cast(pl.String).to_numpy().astype(str),
        schema=None,
        classes=labels.classes,
        split=None if split is None else _split(split),
        group=None if group is None else np.asarray(group).astype(str),
        time=times,
        notes=labels.notes,
    )
    refuse_overlap(population, lambda row: f"row {row + 1}")
    return population


def _features(x: ArrayLike) -> NDArray[np.floating[Any]]:
    features = np.asarray(x)
    if features.dtype.kind not in "biuf":
        raise BadValue(
            f"x is an array of {features.dtype}, not of numbers.", hint="Give numbers; from_frame reads tables with text."
        )
    if features.ndim < 2:
        raise DataError(f"x has shape {list(features.shape)}.", hint="Give one row for each example: [T, D] or [T, ...].")
    if not len(features):
        raise Unreadable("x has no rows.", hint="Give one row for each example.")
    if features.dtype != np.float64:
        features = features.astype(np.float32)
    bad = ~np.isfinite(features.reshape(len(features), -1))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        kind = "missing (NaN)" if np.isnan(features.reshape(len(features), -1)[row, column]) else "infinite"
        raise BadValue(
            f"{int(bad.sum())} cells of x are missing or infinite; the first, in row {row + 1}, column {column + 1}, is {kind}.",
            hint='Fill them in, or use from_frame with impute=("name", ...), which imputes by the client\'s mean and marks them.',
        )
    return features


def _column(values: ArrayLike, name: str, rows: int, *, label: bool = True) -> pl.Series:
    """One value for each row: numbers, or canonical text; none missing."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (rows,):
        raise DataError(f"{name} has shape {list(array.shape)}, but x has {rows} rows.", hint="Give one value for each row of x.")
    if array.dtype.kind in "biuf":
        series = pl.Series(name, np.ascontiguousarray(array))
    else:
        series = pl.Series(
            name, [None if each is None or each != each else str(each) for each in array.tolist()], dtype=pl.String
        )
    read = cells.label if label else cells.text
    series = series.to_frame().select(read(name, series.dtype)).to_series()
    if series.null_count():
        first = int(np.flatnonzero(series.is_null().to_numpy())[0])
        raise BadValue(
            f"{name} is missing in {series.null_count()} of {rows} rows, first in row {first + 1}.",
            hint="Fill it in, or remove these rows.",
        )
    return series


def _named(values: pl.Series, classes: tuple[str, ...]) -> pl.Series:
    """Class indices replaced by the names of the classes; labels that are names already stay."""
    if not values.dtype.is_numeric():
        return values
    numbers = values.cast(pl.Float64)
    names = {float(index): name for index, name in enumerate(classes)}
    return numbers.replace_strict(names, default=values.cast(pl.String), return_dtype=pl.String)


def _split(split: ArrayLike) -> NDArray[Any]:
    words = np.asarray(split).astype(str)
    strange = sorted(set(np.unique(words).tolist()) - set(SPLITS))
    if strange:
        raise BadValue(f"split holds {strange[0][:20]!r}.", hint=f"Write {', '.join(SPLITS)}.")
    return words
