"""The target: which problem it poses, and labels of any kind as class indices 0..K-1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.cells import canonical
from freehold.data.population import Problem
from freehold.data.schema import Target, vocabulary
from freehold.errors import BadValue, LabelError, UsageError, near_miss

FEW = 20  # whole numbers with more distinct values than this are read as a quantity, unless somebody says otherwise


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Values as `Population.target` holds them, names of the classes, and what was decided."""

    values: NDArray[Any]  # [T] int64 or float64
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_labels(cells: pl.Series, *, name: str, declared: Target | None, problem: Problem | None) -> Labels:
    """The target of every example. `cells` holds no nulls: numbers, or canonical text."""
    if problem not in (None, "classification", "regression"):
        raise UsageError(f"There is no problem {problem!r}.", hint=near_miss(str(problem), ["classification", "regression"]))
    if declared is not None:
        if problem is not None and (problem == "classification") != (declared.kind == "class"):
            raise UsageError(
                f"The schema's target {name!r} is a {declared.kind}, but the problem is said to be {problem}.",
                hint="Leave out the problem, or change the schema.",
            )
        return _declared(cells, name, declared) if declared.kind == "class" else _quantity(cells, name)
    if problem is None:
        problem, notes = _infer(cells, name)
    else:
        notes = ()
    if problem == "regression":
        found = _quantity(cells, name)
        return Labels(values=found.values, classes=(), notes=notes)
    return _classes(cells, name, notes)


def _declared(cells: pl.Series, name: str, declared: Target) -> Labels:
    place = {canonical(label): index for index, label in enumerate(declared.classes)}
    words = _words(cells)
    distinct = words.unique().to_list()
    strange = vocabulary([word for word in distinct if word not in place])
    if strange:
        shown = ", ".join(repr(word[:40]) for word in strange[:5])
        raise LabelError(
            f"Target {name!r} has the label{'s' * (len(strange) > 1)} {shown}{', ...' * (len(strange) > 5)} "
            f"in {int(words.is_in(strange).sum())} of {len(words)} rows; expected {_listing(declared.classes)}.",
            hint="Write the labels as the schema does, or list them in [target].classes.",
        )
    values = words.replace_strict(place, return_dtype=pl.Int64).to_numpy()
    return Labels(values=values.astype(np.int64), classes=declared.classes)


def _classes(cells: pl.Series, name: str, notes: tuple[str, ...]) -> Labels:
    words = _words(cells)
    names = vocabulary(words.unique().to_list())
    if len(names) < 2:
        raise LabelError(
            f"Target {name!r} is {names[0]!r} in all {len(words)} rows; two or more classes are needed.",
            hint="Choose another target column, or add the rows of the other classes.",
        )
    if len(names) > len(words) / 2:
        raise LabelError(
            f"Target {name!r} has {len(names)} classes in {len(words)} rows: there is nothing to learn a class from.",
            hint="Choose another target column, or say --problem regression if it is a quantity.",
        )
    place = {label: index for index, label in enumerate(names)}
    values = words.replace_strict(place, return_dtype=pl.Int64).to_numpy().astype(np.int64)
    if names != [str(index) for index in range(len(names))]:
        notes = (*notes, f"Target {name}: labels {_listing(names)} are classes {_span(len(names))}.")
    return Labels(values=values, classes=tuple(names), notes=notes)


def _quantity(cells: pl.Series, name: str) -> Labels:
    numbers = cells.cast(pl.Float64, strict=False)
    values = numbers.to_numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        shown = str(cells[int(bad[0])])[:20]
        raise BadValue(
            f"Target {name!r} is not a finite number in {bad.size} of {len(values)} rows; first {shown!r} in row {bad[0] + 1}.",
            hint="Mend or remove these rows, or say --problem classification if they are classes.",
        )
    return Labels(values=values, classes=())


def _infer(cells: pl.Series, name: str) -> tuple[Problem, tuple[str, ...]]:
    """Text, and few whole numbers, are classes; other numbers are a quantity.

    Whole numbers of an integer type (arrays, frames, Parquet) that count 0..K-1 or 1..K are classes also when there are
    many of them, if each has ten examples on average: that is how data sets with many classes are stored.
    """
    numbers = cells.cast(pl.Float64, strict=False)
    if numbers.null_count() or not bool(numbers.is_finite().all()):
        return "classification", ()
    values = numbers.unique().sort().to_numpy()
    if not np.array_equal(values, np.round(values)):
        return "regression", (f"Target {name}: numbers with fractions, read as a quantity (regression).",)
    if len(values) <= FEW:
        if len(values) <= 2:
            return "classification", ()
        said = f"{len(values)} distinct whole numbers, read as classes; if they are amounts, say --problem regression"
        return "classification", (f"Target {name}: {said} (in Python: problem='regression').",)
    counts_up = values[0] in (0, 1) and values[-1] - values[0] + 1 == len(values)
    if cells.dtype.is_integer() and counts_up and len(cells) >= 10 * len(values):
        said = f"{len(values)} whole numbers without a gap, read as classes; if it is a quantity, say --problem regression."
        return "classification", (f"Target {name}: {said}",)
    said = f"{len(values)} distinct whole numbers, read as a quantity; if they are classes, say --problem classification."
    return "regression", (f"Target {name}: {said}",)


def _words(cells: pl.Series) -> pl.Series:
    if cells.dtype == pl.String:
        return cells
    return cells.cast(pl.String).str.replace(r"^(-?[0-9]+)\.0*$", "$1")


def _listing(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, ... ({len(names)} in all)"


def _span(count: int) -> str:
    return ", ".join(map(str, range(count))) if count <= 10 else f"0 to {count - 1}"
