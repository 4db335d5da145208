"""The same example in two splits: a test on what was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

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


def told_copies(population: Population, rows: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> tuple[str, ...]:
    """Warnings for examples that are alike in all that is known of them, on both sides of a split or at two clients.

    `rows`: client -> split -> rows. Copies are counted, not moved: whether two alike rows are one case, only a person knows.
    """
    place = {client: index for index, client in enumerate(rows)}
    keys = example_keys(population, client=False).to_numpy()
    parts = [
        (where, place[client], name != "train") for client, splits in rows.items() for name, where in splits.items() if len(where)
    ]
    if not parts:
        return ()
    table = pl.DataFrame(
        {
            "key": keys[np.concatenate([where for where, _, _ in parts])],
            "client": np.concatenate([np.full(len(where), client) for where, client, _ in parts]),
            "judged": np.concatenate([np.full(len(where), judged) for where, _, judged in parts]),
        }
    )
    within = table.group_by("client", "key").agg(
        pl.col("judged").sum().alias("n"), pl.col("judged").not_().any().alias("trained")
    )
    both = within.filter(pl.col("trained") & (pl.col("n") > 0)).group_by("client").agg(pl.col("n").sum()).sort("n", "client")
    across = int(table.filter(pl.col("client").n_unique().over("key") > 1).height)
    warnings = []
    if both.height:
        name, most, count = list(rows)[int(both["client"][-1])], int(both["n"][-1]), int(both["n"].sum())
        warnings.append(
            f"{count} validation or test example{'s are' if count > 1 else ' is'} alike in every column to a train example of "
            f"the same client (most at {name}: {most}). If they are copies, remove them, or keep them together by a group column."
        )
    if across:
        warnings.append(f"{across} examples are alike in every column to one of another client. If they are copies, remove them.")
    return tuple(warnings)


def example_keys(population: Population, *, client: bool = True) -> pl.Series:
    """A 64-bit hash of each example: alike for two rows exactly if nothing tells them apart (but their `client`, if it is not
    to count)."""
    extra = {"\0target": population.target} | ({"\0client": population.client} if client else {})
    extra |= {"\0group": population.group} if population.group is not None else {}
    extra |= {"\0time": population.time} if population.time is not None else {}
    features = population.features
    if isinstance(features, np.ndarray):
        flat = np.ascontiguousarray(features.reshape(len(features), -1))
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in flat)
        features = pl.DataFrame({"\0x": np.frombuffer(b"".join(digests), dtype=np.uint64)})
    return features.with_columns([pl.Series(name, values) for name, values in extra.items()]).hash_rows(seed=0)
