"""Made-up tables in a schema's form, to try a plan on: nothing of them comes from records unless the owner asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from freehold.data.mock import mock_population
from freehold.data.population import Population
from freehold.data.schema import Column, Schema
from freehold.drawing import digest_seed
from freehold.errors import DataError

DIGITS = 4
"""Of a number that is written."""


def mock_table(schema: Schema, rows: int, *, seed: int = 0, like: Population | None = None) -> pl.DataFrame:
    """A table with the schema's columns and target, as a file of a node's would have them; columns are independent.

    `like`: each column has the share of gaps, of its categories or of ones, or the 1st and the 99th percentile as its range,
    of this data, and the target the shares of its labels. Without it nothing is learned from anybody.
    """
    if like is None:
        made = mock_population(schema, ("mock",), examples=rows, seed=seed)
        assert isinstance(made.features, pl.DataFrame)
        columns = [_written(made.features[column.name]) for column in schema.columns]
        values = made.target
        named = [schema.target.classes[int(each)] for each in values] if schema.target.classes else np.round(values, DIGITS)
        return pl.DataFrame([*columns, pl.Series(schema.target.name, named)])
    if not isinstance(like.features, pl.DataFrame) or len(like.target) == 0:
        raise DataError("The data to learn from is no table with rows.", hint="Give a CSV or Parquet file of the same schema.")
    rng = np.random.default_rng(digest_seed("mock-like", seed))
    columns = [_written(_alike(column, like.features[column.name], rows, rng)) for column in schema.columns]
    if schema.target.classes:
        drawn = rng.choice(like.target, rows)
        return pl.DataFrame([*columns, pl.Series(schema.target.name, [schema.target.classes[int(each)] for each in drawn])])
    low, high = np.percentile(like.target, (1, 99))
    return pl.DataFrame([*columns, pl.Series(schema.target.name, np.round(rng.uniform(low, high, rows), DIGITS))])


def _alike(column: Column, seen: pl.Series, rows: int, rng: np.random.Generator) -> pl.Series:
    known = seen.drop_nulls()
    gaps = rng.random(rows) < seen.null_count() / len(seen)
    drawn: list[Any]
    if known.is_empty():
        return pl.Series(column.name, [None] * rows, dtype=seen.dtype)
    if column.kind == "number":
        low, high = np.percentile(known.to_numpy(), (1, 99))
        drawn = rng.uniform(low, high, rows).tolist()
    else:
        # Each cell by itself: shares alone are kept, and nothing of which cells belong together.
        drawn = known.gather(rng.integers(0, len(known), rows)).to_list()
    return pl.Series(column.name, [None if gap else each for gap, each in zip(gaps, drawn, strict=True)], dtype=seen.dtype)


def _written(series: pl.Series) -> pl.Series:
    if not series.dtype.is_float():
        return series
    whole = [None if each is None else round(float(each), DIGITS) for each in series]
    if all(each is None or each.is_integer() for each in whole):
        return pl.Series(series.name, [None if each is None else int(each) for each in whole], dtype=pl.Int64)
    return pl.Series(series.name, whole, dtype=pl.Float64)
