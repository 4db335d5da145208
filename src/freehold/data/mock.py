"""Made-up data with a task's schema: for trying a plan without anybody's records, and for learning shapes without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.population import Population
from freehold.data.schema import Column, Schema
from freehold.drawing import digest_seed


def mock_population(schema: Schema, clients: tuple[str, ...], *, examples: int, seed: int = 0) -> Population:
    """`examples` rows for each client, drawn evenly from what the schema allows; a column with missing codes has gaps.

    Nothing is to be learned from it: features and target are independent.
    """
    rng = np.random.default_rng(digest_seed("mock", seed))
    rows = examples * len(clients)
    frame = pl.DataFrame({column.name: _cells(column, rows, rng) for column in schema.columns})
    classes = schema.target.classes
    # Every class occurs with every client, so that a split has them all.
    target = np.arange(rows) % len(classes) if classes else rng.normal(size=rows)
    return Population(
        name="mock",
        features=frame,
        target=target.astype(np.int64 if classes else np.float64),
        client=np.repeat(np.array(clients), examples),
        schema=schema,
        classes=classes,
        notes=("Made-up data: nothing can be learned from it.",),
    )


def _cells(column: Column, rows: int, rng: np.random.Generator) -> pl.Series:
    gaps = rng.random(rows) < 0.1 if column.missing else np.zeros(rows, dtype=bool)
    values: NDArray[Any]
    if column.kind == "category":
        values = rng.choice(np.array(column.categories), rows)
        return pl.Series(column.name, [None if gap else str(v) for v, gap in zip(values, gaps, strict=True)], dtype=pl.String)
    if column.kind == "flag":
        values = rng.integers(0, 2, rows).astype(np.float32)
    else:
        low = column.low if column.low is not None else min(0.0, column.high or 0.0)
        high = column.high if column.high is not None else max(low + 1.0, 1.0)
        values = rng.uniform(low, high, rows).astype(np.float32)
    return pl.Series(column.name, [None if gap else float(v) for v, gap in zip(values, gaps, strict=True)], dtype=pl.Float32)
