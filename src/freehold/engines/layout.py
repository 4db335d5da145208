"""How a personal state lies in a row of bytes: each tensor at its offset, in the order of the tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freehold.core import Tree, flatten, tree_map
from freehold.errors import ArenaError

ALIGNED = 16
"""Bytes; no dtype has larger elements."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tensors of one state lie in its row."""

    like: Tree
    """A state of this shape; its values mean nothing."""
    offsets: Mapping[str, int]
    """Name, flattened -> bytes from the start of the row."""
    row_bytes: int

    @classmethod
    def of(cls, like: Tree) -> Layout:
        """The layout of all states that are shaped like this one."""
        offsets, end = {}, 0
        for name, t in flatten(like).items():
            offsets[name] = end
            end += -(-t.numel() * t.element_size() // ALIGNED) * ALIGNED
        return cls(like=like, offsets=offsets, row_bytes=end)

    def told(self) -> list[dict[str, Any]]:
        """The layout as JSON."""
        return [
            {"name": name, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "offset": self.offsets[name]}
            for name, t in flatten(self.like).items()
        ]

    def pack(self, stacked: Tree, rows: Tensor) -> Tensor:
        """Write stacked states to `rows` [C, row_bytes] of bytes; raises ArenaError where they are shaped otherwise."""
        count = len(rows)
        found, wanted = flatten(stacked), flatten(self.like)
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in found.items()}
        if shapes != {name: ((count, *t.shape), t.dtype) for name, t in wanted.items()}:
            raise ArenaError(
                f"Personal states of {count} clients are {_listed(found)}, but those on disk are, for one, {_listed(wanted)}.",
                hint="client_update has to return what enroll returns: the same names, shapes and dtypes.",
            )
        for name, t in found.items():
            self._within(rows, name, wanted[name]).copy_(t.detach().reshape(count, -1))
        return rows

    def unpack(self, rows: Tensor) -> Tree:
        """The inverse of `pack`: fresh tensors, each by itself, on the device of `like` and in its order."""
        names = iter(self.offsets)

        def one(t: Tensor) -> Tensor:
            out = torch.empty(len(rows), *t.shape, dtype=t.dtype, device=t.device)
            out.view(len(rows), t.numel()).copy_(self._within(rows, next(names), t))
            return out

        return tree_map(one, self.like)

    def _within(self, rows: Tensor, name: str, t: Tensor) -> Tensor:
        start = self.offsets[name]
        if not t.numel():
            return rows.new_empty(len(rows), 0, dtype=t.dtype)
        return rows[:, start : start + t.numel() * t.element_size()].view(t.dtype)


def state_bytes(like: Tree) -> int:
    """What one state of this shape takes on disk."""
    return Layout.of(like).row_bytes


def _listed(flat: Mapping[str, Tensor]) -> str:
    parts = [f"{name} {list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in flat.items()]
    return ", ".join(parts[:4]) + (f", … ({len(parts)} tensors)" if len(parts) > 4 else "") or "nothing"
