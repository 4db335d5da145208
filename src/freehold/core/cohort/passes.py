"""What a pass through the losses of a cohort is asked for, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from freehold.core.objective import Objective
from freehold.core.steps import Batch
from freehold.core.trees import State


class Pair(NamedTuple):
    """A part of a weight's gradient: `g.T @ x`, for each client."""

    name: str
    x: Tensor
    """[C, N, in]: what the layer was given."""
    g: Tensor
    """[C, N, out]: the gradient of its output."""
    raw: bool = False
    """Whether `x` is the batch's own `x`, one row per example."""


class Scattered(NamedTuple):
    """A part of a table's gradient: `g[c, i]` in row `at[c, i]`, and nothing elsewhere."""

    name: str
    at: Tensor
    """[C, N] int64."""
    g: Tensor
    """[C, N, D]."""

    def add_to(self, table: Tensor, alpha: float) -> None:
        """Add it, times alpha, to a stacked table [C, V, D] in place."""
        clients, rows, width = table.shape
        at = self.at + torch.arange(clients, device=table.device)[:, None] * rows
        table.view(clients * rows, width).index_add_(0, at.flatten(), self.g.reshape(-1, width), alpha=alpha)


class Grads(NamedTuple):
    """What a pass leaves; each tensor has a leading client axis."""

    pairs: list[Pair]
    scattered: list[Scattered]
    rest: State
    """Gradients, or parts of them, of what is not in pairs or scattered; names without a gradient are missing."""
    buffers: State
    """Buffers as the pass leaves them."""

    def of(self, name: str, like: Tensor) -> Tensor:
        """The gradient of one parameter `like` [C, ...], built."""
        found = self.rest.get(name)
        for pair in self.pairs:
            if pair.name == name:
                found = torch.bmm(pair.g.mT, pair.x) if found is None else torch.baddbmm(found, pair.g.mT, pair.x)
        for part in self.scattered:
            if part.name == name:
                found = like.new_zeros(like.shape) if found is None else found.clone()
                part.add_to(found, 1)
        return like.new_zeros(like.shape) if found is None else found


class Factored(Protocol):
    """A weight that is not built."""

    @property
    def own(self) -> bool:
        """Whether the weight is given nothing but the clients' own rows, and knows them: then `picks` will do for x."""

    def linear(self, x: Tensor, picks: Tensor | None) -> Tensor:
        """x [n, N, in] -> [n, N, out]; `picks`: which of the client's rows x is, where it is raw."""

    def back(self, g: Tensor) -> Tensor:
        """g [n, N, out] -> [n, N, in]: the gradient of x."""


@runtime_checkable
class Standing(Factored, Protocol):
    """A weight of which `params` has only a stand-in of its shape: whatever cannot ask it is told so."""

    def rows(self, at: Tensor) -> Tensor:
        """at [n, T] int64 -> [n, T, D]: rows of a table."""

    def convolution(self, func: Any, x: Tensor, options: Mapping[str, Any]) -> Tensor:
        """x [n, in, ...] -> [n, out, ...], without bias, by one of torch's functions."""


class Lookup(Protocol):
    """An embedding that is not built."""

    def read(self, rows: Tensor) -> Tensor:
        """Rows [n, N] -> [n, N, D]."""


class Pass(NamedTuple):
    """A pass that is asked for: of what, from where, on what."""

    objective: Objective
    params: State
    rest: State
    """Buffers and frozen parameters."""
    batch: Batch
    seeds: Tensor
    """[C, B]: what each example's loss counts with; zero where it is not real."""
    factored: Mapping[str, Factored] = {}
    """Weights that are not built; they are in `params` as they began."""
    tables: Mapping[str, Lookup] = {}
    """Embeddings that are not built, likewise."""
    picks: Tensor | None = None
    """[C, B]: where in the client's own rows the examples are."""


class Runner(Protocol):
    """What runs a pass."""

    def run(self, wanted: Pass) -> Grads:
        """Forward and backward."""
