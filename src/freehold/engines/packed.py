"""Trees as one run of bytes: how tensors travel between processes, in memory that both see, without pickle."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freehold.core import Tree, tree_map

ALIGNED = 64
"""Bytes that a tensor's place is a multiple of."""


class Place(NamedTuple):
    """Where a tensor lies, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class Layout(NamedTuple):
    """Where the tensors of a tree lie in `size` bytes; small, and all that is sent beside the bytes."""

    places: Mapping[str, Any]
    """name -> Place, or names below it."""
    size: int


def layout_of(tree: Tree) -> Layout:
    """The layout of a tree, its tensors one after the other."""
    end = 0

    def placed(tree: Tree) -> dict[str, Any]:
        nonlocal end
        found: dict[str, Any] = {}
        for name, child in tree.items():
            if isinstance(child, Mapping):
                found[name] = placed(child)
            else:
                found[name] = Place(child.dtype, tuple(child.shape), end)
                end += -(-child.numel() * child.element_size() // ALIGNED) * ALIGNED
        return found

    return Layout(placed(tree), end)


class Memory:
    """Shared memory without a name: whoever was handed its descriptor maps it, and it is gone with the last of them, however
    they end."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Takes the descriptor over."""
        self.descriptor, self.size = descriptor, size
        weakref.finalize(self, os.close, descriptor)  # the mapping stays as long as a tensor looks into it
        self._mapped = mmap.mmap(descriptor, max(1, size))

    @classmethod
    def new(cls, size: int) -> Memory:
        """Zeroed; a page costs memory once it is written to."""
        descriptor = os.memfd_create("freehold")
        os.ftruncate(descriptor, max(1, size))
        return cls(descriptor, size)

    def tree(self, layout: Layout) -> Tree:
        """Tensors that look into this memory."""
        return looking_into(self._mapped, layout)


def looking_into(buffer: Any, layout: Layout) -> Tree:
    """The tree that lies in a buffer, without a copy."""

    def seen(places: Mapping[str, Any]) -> dict[str, Any]:
        return {name: one(child) if isinstance(child, Place) else seen(child) for name, child in places.items()}

    def one(place: Place) -> Tensor:
        count = torch.Size(place.shape).numel()
        if not count:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.frombuffer(buffer, dtype=place.dtype, count=count, offset=place.offset).reshape(place.shape)

    return seen(layout.places)


def write(into: Tree, tree: Tree) -> None:
    """Copy a tree over one of the same names and shapes."""
    tree_map(lambda there, t: there.copy_(t), into, tree)


def shared_copy(tree: Tree) -> tuple[Memory, Layout]:
    """A tree in memory that can be shared."""
    layout = layout_of(tree)
    memory = Memory.new(layout.size)
    write(memory.tree(layout), tree)
    return memory, layout
