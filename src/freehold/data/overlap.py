"""The same example in two splits: a test on what was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import polars as pl

from freehold.data.population import Population
from freehold.errors import SplitOverlap


def refuse_overlap(population: Population, place: Callable[[int], str]) -> None:
    """SplitOverlap if an example (client, features, target, group and time alike) stands in two of the data's own splits."""
    if population.split is None:
        return
    doubles = overlapping(population)
    if doubles:
        first = ", ".join(f"{place(a)} and {place(b)}" for a, b in doubles[:3])
        raise SplitOverlap(
            f"{len(doubles)} example{'s' * (len(doubles) > 1)} of {population.name} stand{'s' * (len(doubles) == 1)} "
            f"in two splits: {first}{', ...' * (len(doubles) > 3)}.",
            hint="Remove them from one of the splits; or leave out the split and Freehold makes one for each client.",
        )


def overlapping(population: Population) -> list[tuple[int, int]]:
    """Pairs of rows that are the same example in different splits; one pair for each such example."""
    if population.split is None:
        return []
    table = pl.DataFrame({"key": example_keys(population), "split": population.split.astype(str)}).with_row_index("row")
    firsts = table.group_by("key", "split").agg(pl.col("row").min()).sort("row")
    pairs = firsts.group_by("key", maintain_order=True).agg(pl.col("row")).filter(pl.col("row").list.len() > 1)
    return [(rows[0], rows[1]) for rows in pairs["row"].to_list()]


def example_keys(population: Population) -> pl.Series:
    """A 64-bit hash of each example: alike for two rows exactly if nothing tells them apart."""
    extra = {"\0client": population.client, "\0target": population.target}
    extra |= {"\0group": population.group} if population.group is not None else {}
    extra |= {"\0time": population.time} if population.time is not None else {}
    features = population.features
    if isinstance(features, np.ndarray):
        flat = np.ascontiguousarray(features.reshape(len(features), -1))
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in flat)
        features = pl.DataFrame({"\0x": np.frombuffer(b"".join(digests), dtype=np.uint64)})
    return features.with_columns([pl.Series(name, values) for name, values in extra.items()]).hash_rows(seed=0)
