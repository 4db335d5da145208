"""Leaves of a tree that are kept as a base and a small update: what SGD makes of a big parameter, without building it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from freehold.core.trees import Tree


class Factors(ABC):
    """Stays factored under `+ base`, `- base` and `* scalar`; anything else sees the dense tensor.

    A leaf of the trees that `descend` gives within `executing("lowrank")`, where a cohort began at one common value. For a
    whole cohort each tensor has a leading client axis.
    """

    base: Tensor | None

    @abstractmethod
    def update(self) -> Tensor:
        """The dense tensor, less the base."""

    @abstractmethod
    def summed(self, weights: Tensor) -> Tensor:
        """The sum of updates over a leading client axis, by weights [C], without building any."""

    @abstractmethod
    def scaled(self, by: Any) -> Self:
        """The update, times a scalar."""

    @abstractmethod
    def on(self, base: Tensor | None) -> Self:
        """The update on another base."""

    def dense(self) -> Tensor:
        """The tensor itself."""
        return self.update() if self.base is None else self.base + self.update()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Over a leading client axis; weights [C]."""
        update = self.summed(weights)
        return update if self.base is None else update + _summed(self.base, weights)

    def __add__(self, other: Any) -> Any:
        return self.on(other) if self.base is None and isinstance(other, Tensor) else self.dense() + dense(other)

    def __sub__(self, other: Any) -> Any:
        # functorch hands an input that a rule returns back as the caller's very object, so `local - shared` is seen here.
        return self.on(None) if other is self.base else self.dense() - dense(other)

    def __mul__(self, by: Any) -> Any:
        if self.base is None and (isinstance(by, (int, float)) or (isinstance(by, Tensor) and by.dim() == 0)):
            return self.scaled(by)
        return self.dense() * dense(by)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Addition by its name; anything else on the dense tensor."""
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            a, b = args
            return a + b if isinstance(a, Factors) else b + a
        return func(*dense(args), **dense(kwargs or {}))

    def __getattr__(self, name: str) -> Any:  # shape, dtype, sum(), ...
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)


@dataclass(frozen=True, eq=False)
class LowRank(Factors):
    """A matrix as `base + coeff.T @ rows`: the weight of a Linear layer after a few steps of SGD."""

    rows: Tensor
    """[N, in]: inputs of the layer."""
    coeff: Tensor
    """[N, out]: what each of them adds, times itself."""
    base: Tensor | None = None
    """[out, in]; None: zero."""

    def update(self) -> Tensor:
        """The matrix [out, in], less the base."""
        return self.coeff.mT @ self.rows

    def summed(self, weights: Tensor) -> Tensor:
        """One product for the whole cohort."""
        coeff = (self.coeff * weights.to(self.coeff.dtype)[:, None, None]).flatten(0, 1)
        rows = self.rows.flatten(0, 1)
        if not coeff.is_cuda:  # there it would wait for the device
            used = (coeff != 0).any(1)
            if int(used.sum()) < 0.85 * len(used):  # the rest is padding
                coeff, rows = coeff[used], rows[used]
        return coeff.T @ rows

    def scaled(self, by: Any) -> LowRank:
        """Times a scalar."""
        return replace(self, coeff=self.coeff * by)

    def on(self, base: Tensor | None) -> LowRank:
        """On another base."""
        return replace(self, base=base)


@dataclass(frozen=True, eq=False)
class Touched(Factors):
    """A table as `base` with `more[i]` added to row `at[i]`: an embedding after a few steps of SGD."""

    at: Tensor
    """[N] int64; a row may be named again."""
    more: Tensor
    """[N, D]."""
    base: Tensor | None
    """[V, D]; None: zero."""
    count: int
    """Rows V of the table."""

    def update(self) -> Tensor:
        """The table [V, D], less the base."""
        whole = self.more.new_zeros(*self.more.shape[:-2], self.count, self.more.shape[-1])
        return whole.scatter_add(-2, self.at[..., None].expand_as(self.more), self.more)

    def summed(self, weights: Tensor) -> Tensor:
        """Touched rows only."""
        more = (self.more * weights.to(self.more.dtype)[:, None, None]).flatten(0, 1)
        return more.new_zeros(self.count, more.shape[1]).index_add_(0, self.at.flatten(), more)

    def scaled(self, by: Any) -> Touched:
        """Times a scalar."""
        return replace(self, more=self.more * by)

    def on(self, base: Tensor | None) -> Touched:
        """On another base."""
        return replace(self, base=base)


def _densely(name: str) -> Callable[..., Any]:
    op = getattr(Tensor, name)
    return lambda self, *others: op(self.dense(), *dense(others))


for _name in ("neg", "pow", "truediv", "rsub", "matmul", "rmatmul", "getitem", "len"):
    setattr(Factors, f"__{_name}__", _densely(f"__{_name}__"))
_ADDITIONS = frozenset((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__))


def _kept(base: Tensor | None) -> list[Tensor]:
    return [] if base is None else [base]


def _touched(kept: Any, count: int) -> Touched:
    at, more, *base = kept
    return Touched(at, more, base[0] if base else None, count)


register_pytree_node(LowRank, lambda m: ([m.rows, m.coeff, *_kept(m.base)], None), lambda kept, _: LowRank(*kept))
register_pytree_node(Touched, lambda t: ([t.at, t.more, *_kept(t.base)], t.count), _touched)


def dense(tree: Any) -> Any:
    """The same tree, list or tensor, all plain tensors."""
    if isinstance(tree, Factors):
        return tree.dense()
    if isinstance(tree, Mapping):
        return {k: dense(v) for k, v in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(dense(v) for v in tree)
    return tree


def weighted_sum(tree: Tree, weights: Tensor) -> Tree:
    """`sum_c weights[c] * tree[c]` for each tensor of a cohort's tree [C, ...]; weights [C]. Integers are summed in float64."""
    out: dict[str, Any] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            out[name] = weighted_sum(leaf, weights)
        else:
            out[name] = leaf.weighted_sum(weights) if isinstance(leaf, Factors) else _summed(leaf, weights)
    return out


def _summed(t: Tensor, weights: Tensor) -> Tensor:
    t = t if t.is_floating_point() else t.double()
    weights = weights.to(t.dtype)
    if t.dim() > 1 and t.stride(0) == 0:  # one for all
        return t[0] * weights.sum()
    return weights @ t if t.dim() == 1 else (weights @ t.flatten(1)).view(t.shape[1:])
