"""From a table of raw cells to a population: names resolved, cells typed, everything odd refused in one error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data import cells
from freehold.data.columns import Selection, choose
from freehold.data.labels import read_labels
from freehold.data.overlap import refuse_overlap
from freehold.data.population import SPLITS, Population
from freehold.data.problems import Problem, refuse
from freehold.data.schema import Column, Schema, Target, infer_column
from freehold.errors import BadValue, DataError, Unreadable

EXACT = 2.0**24  # beyond this, Float32 loses whole numbers
MOST_CATEGORIES = 1000
_SPLIT_WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_WORDS |= {"dev": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a table comes from: its name for messages, and where a row (from 0) stands in it."""

    name: str
    place: Callable[[int], str]


def read_table(table: pl.LazyFrame, selection: Selection, source: Source, *, notes: Sequence[str] = ()) -> Population:
    """The population in `table`, whose cells may be raw text. Reads it once, in streaming fashion, if nothing is wrong."""
    dtypes = dict(table.collect_schema())
    chosen = choose(list(dtypes), selection, source.name)
    columns = [_column(name, dtypes[name], selection) for name in chosen.features]
    special = {"client": chosen.client, "target": chosen.target, "split": chosen.split, "group": chosen.group}
    expressions = [cells.typed(column, dtypes[column.name]) for column in columns if _readable(dtypes[column.name])]
    expressions += [
        cells.text(name, dtypes[name]).alias(f"\0{role}") for role, name in special.items() if name and role != "target"
    ]
    expressions.append(cells.label(chosen.target, dtypes[chosen.target]).alias("\0target"))
    if chosen.time:
        expressions.append(pl.col(chosen.time).alias("\0time"))
    expressions += [
        cells.code_index(column, dtypes[column.name]).alias(f"\0code {column.name}")
        for column in columns
        if any(code != "" for code in column.missing) and _readable(dtypes[column.name])
    ]
    frame = table.select(expressions).collect(engine="streaming")
    if not len(frame):
        raise Unreadable(f"{source.name} has no rows.", hint="Give a table with one row for each example.")
    frame = _more_digits(table, frame, columns, dtypes)
    problems = _problems(table, frame, columns, dtypes, selection, source)
    if problems:
        raise refuse(problems, source=source.name, features=len(columns), declared=selection.schema is not None)
    client, target, split, group = (_complete(frame, role, name, source) if name else None for role, name in special.items())
    assert client is not None and target is not None
    features = frame.select([column.name for column in columns])
    schema = selection.schema or Schema(
        columns=tuple(_inferred(column, features[column.name], selection) for column in columns),
        target=Target(name=chosen.target, kind="number"),
        client=chosen.client,
    )
    declared = schema.target if selection.schema else None
    labels = read_labels(target, name=chosen.target, declared=declared, problem=selection.problem)
    if declared is None and labels.classes:
        schema = replace(schema, target=Target(name=chosen.target, kind="class", classes=labels.classes))
    if selection.schema is not None and selection.impute:
        schema = _imputing(schema, selection.impute)
    names = client.to_numpy().astype(str)
    population = Population(
        name=source.name,
        features=features,
        target=labels.values,
        client=names,
        schema=schema,
        classes=labels.classes,
        split=None if split is None else _splits(split, str(chosen.split), source),
        group=None if group is None else group.to_numpy().astype(str),
        time=None if chosen.time is None else _times(frame["\0time"], chosen.time, source),
        notes=(*notes, *chosen.notes, *labels.notes),
        coded=_coded(frame, names, columns),
    )
    refuse_overlap(population, source.place)
    return population


def _readable(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null)


def _column(name: str, dtype: pl.DataType, selection: Selection) -> Column:
    """What a feature column is to be read as."""
    empty = ("",) if name in selection.impute else ()
    if selection.schema is not None:
        return selection.schema.column(name)
    if name in selection.categorical or dtype == pl.Categorical or dtype == pl.Enum:
        return Column(name=name, kind="category", categories=("",), missing=empty)
    return Column(name=name, kind="flag" if dtype == pl.Boolean else "number", missing=empty)


def _inferred(column: Column, values: pl.Series, selection: Selection) -> Column:
    found = infer_column(values)
    return replace(found, missing=("",) if column.name in selection.impute else ())


def _imputing(schema: Schema, impute: Sequence[str]) -> Schema:
    """The schema, with the columns that the caller allows to be missing declared so."""
    return replace(
        schema,
        columns=tuple(
            replace(column, missing=("",)) if column.name in impute and not column.missing else column
            for column in schema.columns
        ),
    )


def _more_digits(
    table: pl.LazyFrame, frame: pl.DataFrame, columns: Sequence[Column], dtypes: Mapping[str, pl.DataType]
) -> pl.DataFrame:
    """The frame, with number columns that Float32 would round read again as Float64."""
    numbers = [column for column in columns if column.kind == "number" and column.name in frame.columns]
    if not numbers:
        return frame
    extremes = frame.select([pl.col(column.name).fill_nan(None).abs().max() for column in numbers]).row(0)
    large = [column for column, extreme in zip(numbers, extremes, strict=True) if extreme is not None and extreme >= EXACT]
    if not large:
        return frame
    precise = [cells.typed(column, dtypes[column.name], precise=True) for column in large]
    return frame.with_columns(table.select(precise).collect(engine="streaming").get_columns())


def _problems(
    table: pl.LazyFrame,
    frame: pl.DataFrame,
    columns: Sequence[Column],
    dtypes: Mapping[str, pl.DataType],
    selection: Selection,
    source: Source,
) -> list[Problem]:
    found: list[Problem] = []
    for column in columns:
        name, rows = column.name, len(frame)

        def report(kind: Any, bad: NDArray[np.bool_], *, name: str = name, rows: int = rows) -> None:
            where = np.flatnonzero(bad)
            if not where.size:
                return
            token, distinct = "", 0
            if kind == "text":
                raw = table.select(cells.text(name, dtypes[name]))
                token = str(raw.slice(int(where[0]), 1).collect().item())[:20]
                distinct = int(raw.select(pl.col(name).drop_nulls().n_unique()).collect(engine="streaming").item())
            place = source.place(int(where[0]))
            problem = Problem(column=name, kind=kind, count=where.size, rows=rows, place=place, token=token, distinct=distinct)
            found.append(problem)

        if name not in frame.columns:
            kind: Any = "dates" if dtypes[name].is_temporal() else "nested"
            found.append(Problem(column=name, kind=kind, count=rows, rows=rows, place=source.place(0)))
            continue
        values = frame[name]
        if not column.missing and name not in selection.impute:
            report("missing", values.is_null().to_numpy())
        if column.kind == "category":
            distinct = values.n_unique()
            if selection.schema is None and distinct > MOST_CATEGORIES:
                found.append(
                    Problem(
                        column=name, kind="constant vocabulary", count=rows, rows=rows, place=source.place(0), distinct=distinct
                    )
                )
            continue
        report("text", values.is_nan().fill_null(False).to_numpy())
        report("infinite", values.is_infinite().fill_null(False).to_numpy())
        if column.kind == "flag":
            report("flag", (~values.is_in([0.0, 1.0]) & ~values.is_nan()).fill_null(False).to_numpy())
    return found


def _complete(frame: pl.DataFrame, role: str, name: str, source: Source) -> pl.Series:
    """The cells of a column that must not be missing anywhere."""
    values = frame[f"\0{role}"]
    absent = np.flatnonzero(values.is_null().to_numpy())
    if absent.size:
        raise BadValue(
            f"The {role} column {name!r} is missing in {absent.size} of {len(values)} rows of {source.name}, "
            f"first in {source.place(int(absent[0]))}.",
            hint=f"Every example needs a {role}: fill it in, or remove these rows.",
        )
    return values


def _splits(values: pl.Series, name: str, source: Source) -> NDArray[Any]:
    words = values.str.to_lowercase().replace_strict(_SPLIT_WORDS, default=None, return_dtype=pl.String)
    strange = np.flatnonzero(words.is_null().to_numpy())
    if strange.size:
        first = int(strange[0])
        raise BadValue(
            f"The split column {name!r} holds {str(values[first])[:20]!r} in {source.place(first)}.",
            hint=f"Write {', '.join(SPLITS)}.",
        )
    return words.to_numpy().astype(str)


def _times(values: pl.Series, name: str, source: Source) -> NDArray[Any]:
    """Times as sortable numbers: numbers as they are, dates and ISO 8601 texts as microseconds since 1970."""
    if values.dtype == pl.String:
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
        values = _moments(values) if numbers.null_count() else numbers
    elif values.dtype in (pl.Date, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.replace_time_zone(None)
    if values.dtype == pl.Datetime:
        values = values.to_physical()
    if not values.dtype.is_numeric():
        raise DataError(
            f"The time column {name!r} holds {values.dtype}.", hint="Give numbers, dates, or texts as 2024-03-01T12:00."
        )
    absent = np.flatnonzero(values.is_null().to_numpy() | ~np.isfinite(values.cast(pl.Float64).fill_null(0).to_numpy()))
    if absent.size:
        raise BadValue(
            f"The time column {name!r} holds no time in {absent.size} of {len(values)} rows of {source.name}, "
            f"first in {source.place(int(absent[0]))}.",
            hint="Give numbers, or dates as 2024-03-01 or 2024-03-01T12:00.",
        )
    return values.to_numpy()


def _moments(values: pl.Series) -> pl.Series:
    cut = values.str.strip_chars().str.replace(" ", "T").str.replace(r"(Z|[+-]00:?00)$", "")
    best: pl.Series | None = None
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%.f"):
        read = cut.str.strptime(pl.Datetime("us"), form, strict=False)
        best = read if best is None else best.fill_null(read)
    assert best is not None
    return best


def _coded(frame: pl.DataFrame, names: NDArray[Any], columns: Sequence[Column]) -> dict[str, dict[str, dict[str, int]]]:
    """Client -> column -> missing code -> rows, for codes that were found."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for column in columns:
        if f"\0code {column.name}" not in frame.columns:
            continue
        marks = pl.DataFrame({"client": names, "code": frame[f"\0code {column.name}"]}).drop_nulls()
        for client, code, rows in marks.group_by("client", "code").len().sort("client", "code").rows():
            shown = cells.canonical(column.missing[code])
            counts.setdefault(client, {}).setdefault(column.name, {})[shown] = rows
    return counts
