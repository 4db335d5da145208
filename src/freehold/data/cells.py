"""From raw cells to typed ones, as polars expressions: what counts as missing, as a number, as a category."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from freehold.data.schema import Code, Column

MISSING_NUMBER = ("", "?", ".", "-", "NA", "N/A", "n/a", "na", "NaN", "nan", "NAN", "null", "NULL", "None", "none")
"""Cells that mean "unknown" where a number is expected. In a category only the empty cell does: "None" may be a category."""

MISSING_LABEL = ("", "?", "NA", "N/A", "NaN", "nan", "NAN", "null", "NULL")


def text(name: str, dtype: pl.DataType) -> pl.Expr:
    """The cells as canonical text, null for empty: spaces around it are cut off, and "1.0" is "1"."""
    column = pl.col(name)
    if dtype.is_float():
        column = column.fill_nan(None)
    if dtype != pl.String:
        column = column.cast(pl.String)
    cut = column.str.strip_chars()
    whole = cut.str.replace(r"^(-?[0-9]+)\.0*$", "$1")
    return pl.when(cut == "").then(None).otherwise(whole).alias(name)


def label(name: str, dtype: pl.DataType) -> pl.Expr:
    """Target cells: canonical text as `text` gives it, or numbers as they are; null = missing."""
    if dtype.is_numeric():
        return pl.col(name).fill_nan(None) if dtype.is_float() else pl.col(name)
    cells = text(name, dtype)
    return pl.when(cells.is_in(list(MISSING_LABEL))).then(None).otherwise(cells).alias(name)


def number(name: str, dtype: pl.DataType, codes: tuple[Code, ...], *, precise: bool = False) -> pl.Expr:
    """Numbers as Float32 (Float64 where `precise`): null = missing or a missing code, NaN = text that is no number."""
    to = pl.Float64 if precise else pl.Float32
    if dtype == pl.String:
        cut = pl.col(name).str.strip_chars()
        value = cut.cast(to, strict=False)
        unknown = cut.is_in(list(MISSING_NUMBER))
        for code in codes:
            if isinstance(code, str):
                unknown = unknown | (cut == code)
        value = value.fill_null(float("nan"))
        absent = pl.col(name).is_null()
    else:
        value = pl.col(name).cast(to)
        absent = value.is_null() | (value.is_nan() if dtype.is_float() else pl.lit(False))
        unknown = absent
    for figure in _numeric(codes):
        unknown = unknown | (value == pl.lit(figure, dtype=to))
    return pl.when(absent | unknown).then(None).otherwise(value).alias(name)


def flag(name: str, dtype: pl.DataType, codes: tuple[Code, ...]) -> pl.Expr:
    """As `number`; "true" and "false" are 1 and 0."""
    if dtype == pl.String:
        cut = pl.col(name).str.strip_chars().str.to_lowercase()
        said = pl.when(cut == "true").then(1.0).when(cut == "false").then(0.0).cast(pl.Float32)
        return pl.coalesce(said, number(name, dtype, codes)).alias(name)
    return number(name, dtype, codes)


def category(name: str, dtype: pl.DataType, codes: tuple[Code, ...]) -> pl.Expr:
    """Canonical text; null = empty or a missing code."""
    cells = text(name, dtype)
    return pl.when(cells.is_in([canonical(code) for code in codes])).then(None).otherwise(cells).alias(name)


def code_index(column: Column, dtype: pl.DataType) -> pl.Expr:
    """UInt8 index of the missing code that stands in each cell; null = none of them, or an empty cell."""
    cells = text(column.name, dtype)
    found = pl.lit(None, dtype=pl.UInt8)
    for index, code in enumerate(column.missing):
        if code != "":
            found = pl.when(cells == canonical(code)).then(pl.lit(index, dtype=pl.UInt8)).otherwise(found)
    return found


def typed(column: Column, dtype: pl.DataType, *, precise: bool = False) -> pl.Expr:
    """The cells of a column as its kind asks for."""
    if column.kind == "category":
        return category(column.name, dtype, column.missing)
    if column.kind == "flag":
        return flag(column.name, dtype, column.missing)
    return number(column.name, dtype, column.missing, precise=precise)


def canonical(value: Code) -> str:
    """A code, label or category as `text` writes it."""
    if isinstance(value, str):
        cut = value.strip()
        head, dot, tail = cut.partition(".")
        return head if dot and head.lstrip("-").isdigit() and not tail.strip("0") else cut
    return str(int(value)) if float(value).is_integer() else str(value)


def _numeric(codes: Iterable[Code]) -> list[float]:
    figures = []
    for code in codes:
        try:
            figures.append(float(code))
        except ValueError:
            continue
    return figures
