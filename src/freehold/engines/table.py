"""The data of a simulation as one tree, for workers that are to see it: everybody's rows, and whose they are."""

from __future__ import annotations

from typing import NamedTuple

import torch

from freehold.core import Tree
from freehold.engines.feed import Feed


class Table(NamedTuple):
    """A feed without its seed; `tree` is large, the names are not."""

    tree: Tree
    """`x` [T, ...], `y` [T], `rows`: the rows of all clients and splits, one after the other, and `counts` [clients, splits]."""
    clients: tuple[str, ...]
    splits: tuple[str, ...]

    def feed(self, seed: int) -> Feed:
        """The feed, without a copy."""
        parts = iter(self.tree["rows"].split(self.tree["counts"].flatten().tolist()))
        rows = {client: {split: next(parts) for split in self.splits} for client in self.clients}
        return Feed(x=self.tree["x"], y=self.tree["y"], rows=rows, seed=seed)


def table_of(feed: Feed) -> Table:
    """The table of a feed; all its clients have the same splits."""
    clients, splits = tuple(feed.rows), tuple(next(iter(feed.rows.values())))
    parts = [feed.rows[client][split] for client in clients for split in splits]
    counts = torch.tensor([len(part) for part in parts]).reshape(len(clients), len(splits))
    return Table({"x": feed.x, "y": feed.y, "rows": torch.cat(parts), "counts": counts}, clients, splits)
