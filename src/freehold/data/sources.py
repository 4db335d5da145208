"""Populations from CSV and Parquet files and from data frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from freehold.data.columns import Selection
from freehold.data.csvfile import open_csv, probe, refuse_missing
from freehold.data.frames import PandasFrame, as_polars
from freehold.data.memory import Extent, refuse_too_large
from freehold.data.population import Population, Problem, natural
from freehold.data.schema import Schema
from freehold.data.table import Source, read_table
from freehold.errors import ColumnMissing, LabelError, Unreadable, UsageError

_CSV, _PARQUET = (".csv", ".tsv", ".txt", ".data"), (".parquet", ".pq")
_OF_FILE = "\0file"  # the column that says which split a file is


def from_csv(
    path: str | Path,
    *,
    client: str | None = None,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    impute: Sequence[str] = (),
    schema: Schema | None = None,
    problem: Problem | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    test: str | Path | None = None,
    memory_limit_bytes: int | None = None,
) -> Population:
    """A population from a CSV file with a header, in UTF-8; the separator is comma, semicolon, tab or |.

    Names come from the arguments, or else from `schema`. Every column that has no other part is a number feature, unless
    it is in `categorical`; cells may be missing only in `impute` columns or where the schema declares a missing code.
    `split` is a column of train, validation and test; `test` is a second file of the same columns, with the test examples.
    `problem` is inferred if it is None. `memory_limit_bytes` None is what the machine has available now.
    Raises ColumnMissing, BadValue (all problems in one message, with what would make the file usable), LabelError,
    SplitOverlap, NotEnoughMemory or Unreadable.
    """
    selection = _selection(client, target, drop, categorical, impute, schema, problem, split, group, time)
    files = _train_and_test(Path(path), None if test is None else Path(test), selection)
    return _read(files, selection, Path(path).name, memory_limit_bytes)


def from_parquet(
    path: str | Path,
    *,
    client: str | None = None,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    impute: Sequence[str] = (),
    schema: Schema | None = None,
    problem: Problem | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    test: str | Path | None = None,
    memory_limit_bytes: int | None = None,
) -> Population:
    """A population from a Parquet file; otherwise as `from_csv`. Columns of text, dates and lists are not numbers here either."""
    selection = _selection(client, target, drop, categorical, impute, schema, problem, split, group, time)
    files = _train_and_test(Path(path), None if test is None else Path(test), selection)
    return _read(files, selection, Path(path).name, memory_limit_bytes, parquet=True)


def from_files(
    files: Mapping[str, str | Path] | str | Path,
    *,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    impute: Sequence[str] = (),
    schema: Schema | None = None,
    problem: Problem | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    memory_limit_bytes: int | None = None,
) -> Population:
    """A population from one CSV or Parquet file per client: {client: path}, or a folder whose file stems are the clients."""
    client = schema.client if schema else "client"
    selection = _selection(client, target, drop, categorical, impute, schema, problem, split, group, time)
    if isinstance(files, str | Path):
        name, named = Path(files).name, _folder(Path(files))
    else:
        name, named = "files", {client: Path(path) for client, path in files.items()}
    if not named:
        raise UsageError("No files were given.", hint='Give {"client": "path.csv", ...} or a folder.')
    each = [(path, client, value) for value, path in named.items()]
    return _read(each, selection, name, memory_limit_bytes)


def from_frame(
    df: pl.DataFrame | PandasFrame,
    *,
    client: str | None = None,
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    impute: Sequence[str] = (),
    schema: Schema | None = None,
    problem: Problem | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    name: str = "frame",
) -> Population:
    """A population from a pandas or polars DataFrame; otherwise as `from_csv`. Rows are counted from 1 in messages."""
    selection = _selection(client, target, drop, categorical, impute, schema, problem, split, group, time)
    return read_table(as_polars(df).lazy(), selection, Source(name=name, place=lambda row: f"row {row + 1}"))


def _selection(
    client: str | None,
    target: str | None,
    drop: Sequence[str],
    categorical: Sequence[str],
    impute: Sequence[str],
    schema: Schema | None,
    problem: Problem | None,
    split: str | None,
    group: str | None,
    time: str | None,
) -> Selection:
    for what, names in (("drop", drop), ("categorical", categorical), ("impute", impute)):
        if isinstance(names, str):
            raise UsageError(f"{what} is a text.", hint=f"Give a tuple of column names: {what}=({names!r},)")
    return Selection(
        client=client,
        target=target,
        drop=tuple(drop),
        categorical=tuple(categorical),
        impute=tuple(impute),
        schema=schema,
        problem=problem,
        split=split,
        group=group,
        time=time,
    )


def _train_and_test(path: Path, test: Path | None, selection: Selection) -> list[tuple[Path, str, str]]:
    if test is None:
        return [(path, "", "")]
    if selection.split is not None:
        raise UsageError("Both a split column and a test file are given.", hint="Give one of them.")
    return [(path, _OF_FILE, "train"), (test, _OF_FILE, "test")]


def _folder(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise Unreadable(f"{folder} is no folder.", hint="Give the folder that holds one file per client, or a mapping.")
    found = sorted((p for p in folder.iterdir() if p.suffix in (".csv", ".tsv", *_PARQUET)), key=lambda p: natural(p.stem))
    if not found:
        raise Unreadable(f"{folder} holds no .csv, .tsv or .parquet file.", hint="Put one file per client there: site-a.csv, ...")
    stems = [path.stem for path in found]
    if len(set(stems)) < len(stems):
        raise Unreadable(
            f"{folder} holds two files of the same stem.", hint="The stem of a file is the client; make them differ."
        )
    return dict(zip(stems, found, strict=True))


def _read(
    files: Sequence[tuple[Path, str, str]], selection: Selection, name: str, limit_bytes: int | None, *, parquet: bool = False
) -> Population:
    """The population in files of the same columns; each may get a column with a value of its own."""
    extents, openers, names = [], [], list[str]()
    for path, column, _ in files:
        extent, opener = _parquet(path) if parquet or path.suffix in _PARQUET else _csv(path)
        if column and column in extent.cell_bytes and column not in selection.drop:
            raise UsageError(
                f"{path} has a column {column!r} already.", hint="Drop it, or read one file with from_csv and client=."
            )
        _refuse_other_columns(path, list(extent.cell_bytes), names or list(extent.cell_bytes), files[0][0])
        names = names or list(extent.cell_bytes)
        extents.append(extent)
        openers.append(opener)
    everything = Extent(
        rows=sum(extent.rows for extent in extents),
        cell_bytes=extents[0].cell_bytes,
        file_bytes=sum(extent.file_bytes for extent in extents),
    )
    text = {selection.client, selection.target, selection.split, selection.group, *selection.categorical} - {None}
    unread = set(selection.drop)
    if selection.schema:
        text |= {column.name for column in selection.schema.columns if column.kind == "category"}
        text |= {selection.schema.client, selection.schema.target.name}
        unread |= set(names) - set(selection.schema.names) - text
    refuse_too_large(everything, name, limit_bytes, text=frozenset(map(str, text)), drop=frozenset(unread))
    tables, places, rows = [], [], []
    for (_, column, value), opener in zip(files, openers, strict=True):
        table, count, locate = opener()
        extra = [pl.lit(value).alias(column)] if column else []
        tables.append(table.select([*(pl.col(each) for each in names if each != column), *extra]))
        places.append(locate)
        rows.append(count)
    starts = np.cumsum([0, *rows])

    def place(row: int) -> str:
        index = int(np.searchsorted(starts, row, side="right")) - 1
        at = places[index](row - int(starts[index]))
        return at if len(files) == 1 else f"{at} of {files[index][0].name}"

    if files[0][1] == _OF_FILE:
        selection = replace(selection, split=_OF_FILE)
    population = read_table(pl.concat(tables), selection, Source(name=name, place=place))
    if files[0][1] == _OF_FILE and selection.schema is None:
        _refuse_labels_of_test(population, files[1][0])
    return population


def _refuse_labels_of_test(population: Population, path: Path) -> None:
    """LabelError for classes that only the test file has: no model could ever say them, or the two files write them apart."""
    if population.split is None or not population.classes:
        return
    in_test = population.split == "test"
    known, asked = (np.unique(population.target[where]) for where in (~in_test, in_test))
    strange = [population.classes[int(index)] for index in asked if index not in known]
    if strange:
        shown = ", ".join(repr(label[:40]) for label in strange[:5])
        trained = ", ".join(repr(population.classes[int(index)][:40]) for index in known[:5])
        raise LabelError(
            f"{path} has the label{'s' * (len(strange) > 1)} {shown}{', ...' * (len(strange) > 5)}, which no train example has; "
            f"those have {trained}{', ...' * (len(known) > 5)}.",
            hint="Write the labels alike in both files. If the classes are meant, list them in a schema: [target].classes.",
        )


_Opener = Callable[[], tuple[pl.LazyFrame, int, Callable[[int], str]]]


def _csv(path: Path) -> tuple[Extent, _Opener]:
    probed = probe(path)
    extent = Extent(rows=probed.rows, cell_bytes=dict(zip(probed.names, probed.cell_bytes, strict=True)), file_bytes=probed.size)

    def opener() -> tuple[pl.LazyFrame, int, Callable[[int], str]]:
        file = open_csv(path, probed)
        return file.scan(), file.rows, lambda row: f"line {file.line(row)}"

    return extent, opener


def _parquet(path: Path) -> tuple[Extent, _Opener]:
    refuse_missing(path)
    try:
        table = pl.scan_parquet(path, glob=False)
        schema = table.collect_schema()
        rows = int(table.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Unreadable(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.", hint="Check the file.") from error
    extent = Extent(rows=rows, cell_bytes=dict.fromkeys(schema.names(), 12.0), file_bytes=path.stat().st_size)
    return extent, lambda: (table, rows, lambda row: f"row {row + 1}")


def _refuse_other_columns(path: Path, names: list[str], expected: list[str], first: Path) -> None:
    lacking = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    if lacking:
        raise ColumnMissing(
            f"{path} has no column {lacking[0]!r}, but {first.name} has.", hint=f"Columns of {path.name}: {', '.join(names)}."
        )
    if extra:
        raise ColumnMissing(f"{first} has no column {extra[0]!r}, but {path.name} has.", hint="Give all files the same columns.")
