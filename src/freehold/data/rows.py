"""Whose rows are whose, for a million clients as well: one tensor, and views of it for those that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freehold.data.population import SPLITS
from freehold.data.split import Splits

KEPT = 4096
"""Clients whose views are kept; a view takes more memory than the few rows of a small client."""


class Rows(Mapping[str, Mapping[str, Tensor]]):
    """client -> split -> row indices, int64, in the order of `splits`."""

    def __init__(self, splits: Splits) -> None:
        parts: list[NDArray[np.int64]] = [split[name] for split in splits.values() for name in SPLITS]
        self._index = {client: len(SPLITS) * i for i, client in enumerate(splits)}
        self._ends = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        self._rows = torch.from_numpy(np.concatenate([*parts, np.empty(0, dtype=np.int64)]).astype(np.int64, copy=False))
        self._views: dict[str, Mapping[str, Tensor]] = {}

    def __getitem__(self, client: str) -> Mapping[str, Tensor]:
        found = self._views.get(client)
        if found is None:
            first = self._index[client]
            ends = self._ends[first : first + len(SPLITS) + 1].tolist()
            found = {name: self._rows[a:b] for name, a, b in zip(SPLITS, ends, ends[1:], strict=False)}
            if len(self._views) >= KEPT:
                self._views.clear()
            self._views[client] = found
        return found

    def __contains__(self, client: object) -> bool:
        return client in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
