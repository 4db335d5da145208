"""A matrix kept as `base + coeff.T @ rows`: what SGD makes of a Linear's weight, without building it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from freehold.core.trees import Tree


@dataclass(frozen=True, eq=False)
class LowRank:
    """Stays factored under `+ base`, `- base` and `* scalar`; anything else sees the dense matrix.

    A leaf of the trees that `descend` gives within `executing("lowrank")`, where a cohort began at one common weight. For a
    whole cohort each tensor has a leading client axis.
    """

    rows: Tensor
    """[N, in]: inputs of the layer."""
    coeff: Tensor
    """[N, out]: what each of them adds, times itself."""
    base: Tensor | None = None
    """[out, in]; None: zero."""

    def dense(self) -> Tensor:
        """The matrix [out, in]."""
        update = self.coeff.mT @ self.rows
        return update if self.base is None else self.base + update

    def __add__(self, other: Any) -> Any:
        return replace(self, base=other) if self.base is None and isinstance(other, Tensor) else self.dense() + dense(other)

    def __sub__(self, other: Any) -> Any:
        # functorch hands an input that a rule returns back as the caller's very object, so `local - shared` is seen here.
        return replace(self, base=None) if other is self.base else self.dense() - dense(other)

    def __mul__(self, by: Any) -> Any:
        if self.base is None and (isinstance(by, (int, float)) or (isinstance(by, Tensor) and by.dim() == 0)):
            return replace(self, coeff=self.coeff * by)
        return self.dense() * dense(by)

    __radd__, __rmul__ = __add__, __mul__

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Over a leading client axis: one product for the whole cohort; weights [C]."""
        coeff = self.coeff * weights.to(self.coeff.dtype)[:, None, None]
        update = coeff.flatten(0, 1).T @ self.rows.flatten(0, 1)
        return update if self.base is None else update + _summed(self.base, weights)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Addition by its name; anything else on the dense matrix."""
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            a, b = args
            return a + b if isinstance(a, LowRank) else b + a
        return func(*dense(args), **dense(kwargs or {}))

    def __getattr__(self, name: str) -> Any:  # shape, dtype, sum(), ...
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dense(), name)


def _densely(name: str) -> Callable[..., Any]:
    op = getattr(Tensor, name)
    return lambda self, *others: op(self.dense(), *dense(others))


for _name in ("neg", "pow", "truediv", "rsub", "matmul", "rmatmul", "getitem", "len"):
    setattr(LowRank, f"__{_name}__", _densely(f"__{_name}__"))
_ADDITIONS = frozenset((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__))

register_pytree_node(
    LowRank,
    lambda m: ([m.rows, m.coeff, *([] if m.base is None else [m.base])], None),
    lambda kept, _: LowRank(*kept),
)


def dense(tree: Any) -> Any:
    """The same tree, list or tensor, all plain tensors."""
    if isinstance(tree, LowRank):
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
            out[name] = leaf.weighted_sum(weights) if isinstance(leaf, LowRank) else _summed(leaf, weights)
    return out


def _summed(t: Tensor, weights: Tensor) -> Tensor:
    t = t if t.is_floating_point() else t.double()
    weights = weights.to(t.dtype)
    if t.dim() > 1 and t.stride(0) == 0:  # one for all
        return t[0] * weights.sum()
    return weights @ t if t.dim() == 1 else (weights @ t.flatten(1)).view(t.shape[1:])
