"""A pandas frame as a polars one, column by column through numpy: neither pandas nor pyarrow is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.errors import DataError, UsageError


class PandasSeries(Protocol):
    """What is used of a pandas Series."""

    def to_numpy(self) -> NDArray[Any]:
        """The values."""
        ...

    def isna(self) -> PandasSeries:
        """Which values are missing."""
        ...


class PandasFrame(Protocol):
    """What is used of a pandas DataFrame."""

    @property
    def columns(self) -> Iterable[object]:
        """The names of the columns."""
        ...

    def __getitem__(self, name: Any, /) -> Any: ...


def as_polars(frame: pl.DataFrame | PandasFrame) -> pl.DataFrame:
    """The frame itself, or a polars copy of a pandas frame."""
    if isinstance(frame, pl.DataFrame):
        return frame
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise UsageError(
            f"{type(frame).__name__} is no data frame.", hint="Give a pandas or polars DataFrame; for arrays use from_arrays."
        )
    labels: list[object] = list(frame.columns)
    doubled = [name for name, count in Counter(map(str, labels)).items() if count > 1]
    if doubled:
        raise DataError(f"The frame has the column {doubled[0]!r} twice.", hint="Give each column a name of its own.")
    return pl.DataFrame([_series(str(label), _column(frame, label)) for label in labels])


def _column(frame: PandasFrame, label: object) -> PandasSeries:
    column: PandasSeries = frame[label]
    return column


def _series(name: str, column: PandasSeries) -> pl.Series:
    values, absent = column.to_numpy(), np.asarray(column.isna().to_numpy(), dtype=bool)
    category = str(getattr(column, "dtype", "")) == "category"
    if values.dtype.kind in "biuf" and not category:
        return pl.Series(name, np.ascontiguousarray(values), nan_to_null=values.dtype.kind == "f")
    if values.dtype.kind == "M" and not category:
        return pl.Series(name, values.astype("datetime64[us]"))
    known = [None if gone else value for value, gone in zip(values.tolist(), absent, strict=True)]
    if category:
        return pl.Series(name, [None if value is None else str(value) for value in known], dtype=pl.String).cast(pl.Categorical)
    present = [value for value in known if value is not None]
    if present and all(isinstance(value, bool | np.bool_) for value in present):
        return pl.Series(name, known, dtype=pl.Boolean)
    if present and all(isinstance(value, int | np.integer) for value in present):
        return pl.Series(name, known, dtype=pl.Int64)
    if present and all(isinstance(value, int | float | np.number) for value in present):
        return pl.Series(name, known, dtype=pl.Float64)
    return pl.Series(name, [None if value is None else str(value) for value in known], dtype=pl.String)
