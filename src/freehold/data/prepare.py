"""From a population and its splits to tensors. Fitted on train rows; what leaves a client is sums, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from freehold.data.moments import Moments, Statistics, fit
from freehold.data.overlap import told_copies
from freehold.data.population import Population
from freehold.data.rows import Rows
from freehold.data.schema import Column, infer_column
from freehold.data.split import Splits
from freehold.errors import BadValue, SchemaError, TooFewExamples

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What tasks train on. Row i of x and y is row i of the population; rows of skipped clients are zero and in no split."""

    x: Tensor  # [T, D] or [T, ...] float32
    y: Tensor  # [T] int64 class index, or float32
    rows: Mapping[str, Mapping[str, Tensor]]  # client -> split -> row indices into x, int64, ascending
    feature_names: tuple[str, ...]  # of the D features; () for arrays [T, ...] of more than two axes
    classes: tuple[str, ...]  # () = regression
    clients: tuple[str, ...]  # those that take part
    skipped: Mapping[str, int] = field(default_factory=dict)  # devices below `min_examples`, with their examples
    warnings: tuple[str, ...] = ()  # in plain words
    target_scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Client -> (mean, standard deviation) that y was standardized with; empty = y is in its own unit."""


def prepare(
    population: Population,
    splits: Splits,
    *,
    min_examples: int,
    kind: Literal["silos", "devices"],
    statistics: Statistics = "client",
    scale_target: bool = False,
) -> Prepared:
    """Tensors of every client that takes part.

    Numbers are standardized by the client's own train rows ("client": nothing is shared), by those of all clients
    ("federated": each gives counts and sums, then sums of squares about the common mean), by the schema alone ("ranges": from
    `low` to `high` is four deviations, what lies beyond is cut off, a missing cell is in the middle; nothing rests on other
    records), or not at all ("none").
    A missing cell becomes the train mean, and each column that may be missing gets a feature "<name> missing". A column
    without a known value, or with a single one, in the train rows is 0 for that client. Categories are one-hot over the
    schema's vocabulary; an unknown one is all zeros. Without a declared schema the vocabulary is that of all clients.
    `scale_target` standardizes a regression target in the same way and says so in `target_scale`.
    Raises TooFewExamples for a silo below `min_examples`, or if no device is left; SchemaError where "ranges" lacks one.
    """
    clients, skipped = _admitted(population, min_examples, kind)
    code = _codes(population, clients)
    train = np.zeros(len(code), dtype=bool)
    for client in clients:
        train[splits[client]["train"]] = True
    if isinstance(population.features, np.ndarray):
        x, names, unknown = _array(population.features, code, train, len(clients), statistics)
    else:
        x, names, unknown = _frame(population, population.features, code, train, len(clients), statistics)
    x[code < 0] = 0
    warnings = (*_label_warnings(population, splits, clients), *_split_warnings(population, splits, clients))
    warnings += told_copies(population, {client: splits[client] for client in clients})
    warnings += tuple(
        f"{clients[index]}: {', '.join(columns)} unknown in every train row, so 0 in all rows."
        for index, columns in unknown.items()
    )
    y, scale = _target(population, code, train, clients, statistics, scale_target)
    return tensors(
        x,
        y,
        {client: splits[client] for client in clients},
        feature_names=names,
        classes=population.classes,
        skipped=skipped,
        warnings=warnings,
        target_scale=scale,
    )


def tensors(
    x: NDArray[np.floating[Any]],
    y: NDArray[Any],
    splits: Splits,
    *,
    feature_names: tuple[str, ...],
    classes: tuple[str, ...],
    skipped: Mapping[str, int] | None = None,
    warnings: tuple[str, ...] = (),
    target_scale: Mapping[str, tuple[float, float]] | None = None,
) -> Prepared:
    """What is prepared already, as tensors: x [T, ...], y [T] class indices or numbers, and the rows of each client's splits."""
    return Prepared(
        x=torch.from_numpy(x.astype(np.float32, copy=False)),
        y=torch.from_numpy(y.astype(np.int64 if classes else np.float32)),
        rows=Rows(splits),
        feature_names=feature_names,
        classes=classes,
        clients=tuple(splits),
        skipped=skipped or {},
        warnings=warnings,
        target_scale=target_scale or {},
    )


def _admitted(
    population: Population, min_examples: int, kind: Literal["silos", "devices"]
) -> tuple[tuple[str, ...], dict[str, int]]:
    small = {client: size for client, size in population.sizes.items() if size < min_examples}
    if small and kind == "silos":
        listing = ", ".join(f"{client} ({size})" for client, size in list(small.items())[:5])
        raise TooFewExamples(
            f"{len(small)} client{'s have' if len(small) > 1 else ' has'} fewer than {min_examples} "
            f"example{'' if min_examples == 1 else 's'}: "
            f"{listing}{', ...' * (len(small) > 5)}.",
            hint=f"Say --min-examples {min(small.values())} (in Python: min_examples={min(small.values())}), leave these clients "
            "out, or say --devices (devices=True), which skips small clients and counts them.",
        )
    clients = tuple(client for client in population.clients if client not in small)
    if not clients:
        raise TooFewExamples(
            f"None of {len(small)} clients has {min_examples} examples; the largest has {max(small.values(), default=0)}.",
            hint="Lower --min-examples (in Python: min_examples).",
        )
    return clients, small


def _codes(population: Population, clients: tuple[str, ...]) -> NDArray[np.int64]:
    """[T] index of each example's client in `clients`, -1 for skipped ones."""
    place = {client: index for index, client in enumerate(clients)}
    return np.array([place.get(client, -1) for client in population.clients], dtype=np.int64)[population.codes]


def _array(
    values: NDArray[np.float64], code: NDArray[np.int64], train: NDArray[np.bool_], count: int, statistics: Statistics
) -> tuple[NDArray[np.float32], tuple[str, ...], dict[int, list[str]]]:
    x = np.array(values, dtype=np.float32)
    if not np.isfinite(x).all():
        raise BadValue("The feature array holds NaN or infinite numbers.", hint="Impute them first, or give a frame.")
    names = tuple(f"x{index}" for index in range(x.shape[1])) if x.ndim == 2 else ()
    if statistics == "ranges":
        raise _no_schema()
    if statistics == "none":
        return x, names, {}
    flat = x.reshape(len(x), -1)
    for index in range(flat.shape[1]):
        column = flat[:, index].astype(np.float64)
        flat[:, index] = fit(column, code, train, count, statistics).standardize(column, code)
    return x, names, {}


def _frame(
    population: Population,
    frame: pl.DataFrame,
    code: NDArray[np.int64],
    train: NDArray[np.bool_],
    count: int,
    statistics: Statistics,
) -> tuple[NDArray[np.float32], tuple[str, ...], dict[int, list[str]]]:
    if statistics == "ranges":
        return _by_ranges(population, frame)
    columns = population.schema.columns if population.schema else tuple(infer_column(frame[name]) for name in frame.columns)
    width = sum(len(column.categories) or 1 for column in columns)
    masked = [bool(column.missing) or frame[column.name].null_count() > 0 for column in columns]
    x = np.zeros((len(frame), width + sum(masked)), dtype=np.float32)
    names: list[str] = []
    unknown: dict[int, list[str]] = {}
    for column, mask in zip(columns, masked, strict=True):
        values = frame[column.name]
        if column.kind == "category":
            for category in column.categories:
                x[:, len(names)] = (values == category).fill_null(False).to_numpy()
                names.append(f"{column.name}={category}")
        else:
            numbers = values.cast(pl.Float64).to_numpy()
            moments = fit(numbers, code, train, count, statistics)
            x[:, len(names)] = _filled(column, numbers, code, moments, statistics)
            names.append(column.name)
            for index in np.flatnonzero(moments.count == 0):
                unknown.setdefault(int(index), []).append(column.name)
        if mask:
            x[:, len(names)] = values.is_null().to_numpy()
            names.append(f"{column.name} missing")
    return x, tuple(names), unknown


def _by_ranges(population: Population, frame: pl.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...], dict[int, list[str]]]:
    """Each row's features from that row and the schema alone."""
    if population.schema is None:
        raise _no_schema()
    bare = [c.name for c in population.schema.columns if c.kind == "number" and (c.low is None or c.high is None)]
    if bare:
        raise SchemaError(
            f"The schema has no low and high for {', '.join(bare[:5])}{', …' * (len(bare) > 5)}.",
            hint="Record-level privacy scales numbers by what the schema says, since a mean over the data would tell of every "
            "record: add the range that is known beforehand, not that of the data.",
        )
    parts: list[tuple[str, Floats]] = []
    for column in population.schema.columns:
        values = frame[column.name]
        if column.kind == "category":
            parts += [(f"{column.name}={c}", (values == c).fill_null(False).to_numpy().astype(float)) for c in column.categories]
        else:
            numbers = values.cast(pl.Float64).to_numpy()
            if column.low is not None and column.high is not None:
                reach = (column.high - column.low) / 2 or 1.0
                numbers = np.clip((numbers - (column.low + column.high) / 2) / reach, -1.0, 1.0) * 2
            parts.append((column.name, np.nan_to_num(numbers, nan=0.0)))
        if column.missing:
            parts.append((f"{column.name} missing", values.is_null().to_numpy().astype(float)))
    return np.stack([part for _, part in parts], 1).astype(np.float32), tuple(name for name, _ in parts), {}


def _no_schema() -> SchemaError:
    return SchemaError(
        "Record-level privacy needs a schema that says each number's range; this data has none.",
        hint="Write one with `freehold data schema`, look at its low and high, and give it with --schema.",
    )


def _filled(column: Column, numbers: Floats, code: NDArray[np.int64], moments: Moments, statistics: Statistics) -> Floats:
    """Flags stay 0 and 1, numbers are standardized; missing cells get the mean, columns without a known value 0."""
    if column.kind == "number" and statistics != "none":
        return moments.standardize(numbers, code)
    known = np.where(np.isnan(numbers), moments.mean[code], numbers)
    return np.where(moments.count[code] == 0, 0.0, known)


def _target(
    population: Population,
    code: NDArray[np.int64],
    train: NDArray[np.bool_],
    clients: tuple[str, ...],
    statistics: Statistics,
    scale_target: bool,
) -> tuple[NDArray[Any], dict[str, tuple[float, float]]]:
    if population.classes or not scale_target or statistics == "none":
        return population.target, {}
    values = population.target.astype(np.float64)
    moments = fit(values, code, train, len(clients), statistics)
    scaled = (values - moments.mean[code]) / moments.scale[code]
    scale = {client: (float(moments.mean[index]), float(moments.scale[index])) for index, client in enumerate(clients)}
    return scaled, scale


def _label_warnings(population: Population, splits: Splits, clients: tuple[str, ...]) -> tuple[str, ...]:
    if not population.classes:
        return ()
    warnings = []
    for client in clients:
        rows = population.rows[client]
        labels = np.unique(population.target[rows])
        if len(labels) == 1:
            warnings.append(f"{client}: {_all(len(rows), 'example')} {population.classes[int(labels[0])]!r}.")
            continue
        train = np.unique(population.target[splits[client]["train"]])
        if len(train) == 1:
            warnings.append(
                f"{client}: {_all(len(splits[client]['train']), 'train example')} {population.classes[int(train[0])]!r}."
            )
    return tuple(warnings)


def _all(count: int, noun: str) -> str:
    """'all 12 examples are', 'its one example is'."""
    return f"its one {noun} is" if count == 1 else f"all {count} {noun}s are"


def _split_warnings(population: Population, splits: Splits, clients: tuple[str, ...]) -> tuple[str, ...]:
    """Where a population has splits of its own and a client lacks one, and where a split stayed empty."""
    warnings = []
    for client in clients:
        if population.split is not None:
            own = set(np.unique(population.split[population.rows[client]]).tolist())
            for name in ("validation", "test"):
                if name not in own and len(splits[client][name]) and name in set(population.split.tolist()):
                    warnings.append(
                        f"{client}: has no {name} rows of its own; {len(splits[client][name])} train rows were taken."
                    )
        warnings += [f"{client}: no {name} rows." for name in ("train", "test") if not len(splits[client][name])]
    return tuple(warnings)
