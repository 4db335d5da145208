"""Trees: tensors nested by name. Nothing else travels between server and clients, and nothing else is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Mapping[str, Tensor]
"""One model: parameters and buffers by name."""

Tree: TypeAlias = Mapping[str, Any]
"""Tensors nested by name: each value is a Tensor or a Tree. (Said as a recursive type, each access would need a cast.)"""


def tree_map(fn: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply `fn` to tensors of the same name; the first tree says which names there are."""
    first, *others = trees
    return {
        name: tree_map(fn, child, *(other[name] for other in others))
        if isinstance(child, Mapping)
        else fn(child, *(other[name] for other in others))
        for name, child in first.items()
    }


def add(a: Tree, b: Tree) -> Tree:
    """`a + b`, by name."""
    return tree_map(torch.add, a, b)


def scale(a: Tree, by: Tensor | float) -> Tree:
    """`by * a`."""
    return tree_map(lambda x: x * by, a)


def zeros(a: Tree) -> Tree:
    """A tree like `a`, all zero."""
    return tree_map(torch.zeros_like, a)


def mix(a: Tree, b: Tree, weight: Tensor | float) -> Tree:
    """`(1 - weight) * a + weight * b`; integer tensors are taken from `a`."""
    return tree_map(lambda x, y: (1 - weight) * x + weight * y if x.is_floating_point() else x, a, b)


def choose(on: Tensor, a: Tree, b: Tree) -> Tree:
    """`a` where the boolean `on` [] is true, else `b`."""
    return tree_map(lambda x, y: torch.where(on, x, y), a, b)


def dot(a: Tree, b: Tree) -> Tensor:
    """The inner product of two trees, a scalar []."""
    return torch.stack([(x * y).sum() for x, y in zip(leaves(a), leaves(tree_map(lambda _, y: y, a, b)), strict=True)]).sum()


def norm(a: Tree) -> Tensor:
    """The L2 norm of a whole tree, a scalar []."""
    return dot(a, a).sqrt()


def difference(new: Tree, old: Tree) -> Tree:
    """`new - old` for the floating tensors of `old`; counters and other integers are not learned, so not sent."""
    out: dict[str, Any] = {}
    for name, before in old.items():
        after = new[name]
        if isinstance(before, Mapping):
            out[name] = difference(after, before)
        elif before.is_floating_point():
            out[name] = after - before
    return out


def move(state: Tree, step: Tree) -> Tree:
    """`state + step`; names that `step` lacks stay as they are."""
    out: dict[str, Any] = {}
    for name, value in state.items():
        if name not in step:
            out[name] = value
        elif isinstance(value, Mapping):
            out[name] = move(value, step[name])
        else:
            out[name] = value + step[name]
    return out


def split(state: State, pick: Callable[[str], bool]) -> tuple[State, State]:
    """Partition a state by name into (picked, rest)."""
    return {k: v for k, v in state.items() if pick(k)}, {k: v for k, v in state.items() if not pick(k)}


def leaves(a: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in its order."""
    for child in a.values():
        if isinstance(child, Mapping):
            yield from leaves(child)
        else:
            yield child


def flatten(a: Tree, prefix: str = "") -> dict[str, Tensor]:
    """A tree as one flat dictionary, `{"model/fc.weight": ...}`; the names a contribution spec and a file use."""
    out: dict[str, Tensor] = {}
    for name, child in a.items():
        if isinstance(child, Mapping):
            out |= flatten(child, f"{prefix}{name}/")
        else:
            out[f"{prefix}{name}"] = child
    return out


def unflatten(flat: Mapping[str, Tensor], like: Tree | None = None) -> Tree:
    """The inverse of `flatten`; `like` gives the branches without a tensor, which a flat dictionary cannot show."""
    out = _branches(like or {})
    for path, tensor in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = tensor
    return out


def _branches(tree: Tree) -> dict[str, Any]:
    return {name: _branches(child) for name, child in tree.items() if isinstance(child, Mapping)}


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one shape as one tree with a leading axis."""
    return tree_map(lambda *xs: torch.stack(xs), *trees)


def at(tree: Tree, index: int) -> Tree:
    """Entry `index` of a tree with a leading axis; a copy, so that the whole can be freed."""
    return tree_map(lambda t: t[index].clone(), tree)


def is_finite(a: Tree) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(t).all()) for t in leaves(a) if t.is_floating_point())
