"""A population: features, target and client of every example, in one table, before anything is fitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.schema import Schema
from freehold.errors import DataError

Array = NDArray[Any]
"""A numpy array of any dtype; the field's comment says which."""

Problem = Literal["classification", "regression"]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Every example of every client; row i of each field belongs to example i.

    A frame holds numbers and flags as Float32 (Float64 where Float32 would lose digits) and categories as String; null
    means missing, and the schema's missing codes have become null. An array [T, ...] is float and has no missing values.
    """

    name: str
    features: pl.DataFrame | Array  # [T] rows
    target: Array  # [T] int64 class index, or float64
    client: Array  # [T] str
    schema: Schema | None  # None for plain arrays
    classes: tuple[str, ...]  # in index order; () = regression
    split: Array | None = None  # [T] "train" | "validation" | "test": the data's own split
    group: Array | None = None  # [T] examples of one group never straddle splits
    time: Array | None = None  # [T] sortable; test after validation after train
    notes: tuple[str, ...] = ()  # what was decided while reading, in plain words
    coded: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """Client -> column -> missing code that was found -> rows; what `check` tells of cells that are null here."""

    def __post_init__(self) -> None:
        rows = len(self.features)
        columns = {"target": self.target, "client": self.client, "split": self.split, "group": self.group, "time": self.time}
        for name, values in columns.items():
            if values is not None and len(values) != rows:
                raise DataError(
                    f"{name} has {len(values)} values, but there are {rows} rows of features.",
                    hint="Give one value for each example, in the same order.",
                )

    @property
    def problem(self) -> Problem:
        """What kind of target this is."""
        return "classification" if self.classes else "regression"

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """[T] index of each example's client in `clients`."""
        place = {name: index for index, name in enumerate(self.clients)}
        names, inverse = np.unique(self.client, return_inverse=True)
        return np.array([place[str(name)] for name in names], dtype=np.int64)[inverse]

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients, in natural order: "site 2" before "site 10"."""
        return tuple(sorted((str(name) for name in np.unique(self.client)), key=natural))

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Examples of each client."""
        counts = np.bincount(self.codes, minlength=len(self.clients))
        return {name: int(count) for name, count in zip(self.clients, counts, strict=True)}

    @cached_property
    def rows(self) -> Mapping[str, NDArray[np.int64]]:
        """The rows of each client, ascending."""
        order = np.argsort(self.codes, kind="stable")
        ends = np.cumsum(np.bincount(self.codes, minlength=len(self.clients)))
        return dict(zip(self.clients, np.split(order, ends[:-1]), strict=True))


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts "site 2" before "site 10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts)
