"""One pass through the losses of a whole cohort, forward and backward, with the gradients of Linear layers left factored.

The forward pass is the objective's own code under `vmap`. One operation is looked at more closely: `F.linear` by a learned
weight. Its gradient is never built; it is kept as the pair (input rows X, output gradients G), for the gradient is `G.T @ X`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from freehold.core.batching import custom_vmap
from freehold.core.cohort.passes import Grads, Pair, Pass, Scattered, Standing
from freehold.core.steps import Batch
from freehold.core.trees import State


class Tape:
    """Runs the losses themselves, under `vmap`, and lets autograd go back."""

    def run(self, wanted: Pass) -> Grads:
        """Forward and backward."""
        params = {k: v.detach().requires_grad_() for k, v in wanted.params.items()}
        watch = _Watch(wanted, params)
        objective, batch = wanted.objective, wanted.batch

        def one(params: State, rest: State, held: State, batch: Batch) -> tuple[Tensor, State]:
            watch.names = {id(v): k for k, v in params.items()}
            return objective.losses({**held, **rest, **params}, batch)

        with torch.enable_grad(), watch:
            losses, seen = vmap(one, randomness="error")(params, wanted.rest, dict(objective.held), dict(batch))
            watch.names = {}  # the tensors that these were are gone, and others may have their place
            total = (torch.where(batch["real"], losses, 0) * wanted.seeds).sum()
        outputs = [y for y, _ in watch.seen]
        sources = [*outputs, *params.values()]
        found = torch.autograd.grad(total, sources, allow_unused=True) if total.requires_grad else [None] * len(sources)
        parts = [part(g) for (_, part), g in zip(watch.seen, found, strict=False) if g is not None]
        pairs, scattered = [p for p in parts if isinstance(p, Pair)], [p for p in parts if isinstance(p, Scattered)]
        rest = {k: g for k, g in zip(params, found[len(outputs) :], strict=True) if g is not None}
        return Grads(pairs, scattered, rest, {k: v.detach() for k, v in seen.items()})


class Plain:
    """Runs the losses and their gradient under `vmap`, whatever is in them; gradients are built."""

    def run(self, wanted: Pass) -> Grads:
        """Forward and backward."""
        objective = wanted.objective

        def of_one(params: State, rest: State, held: State, batch: Batch, seeds: Tensor) -> tuple[State, State]:
            def total(params: State) -> tuple[Tensor, State]:
                losses, seen = objective.losses({**held, **rest, **params}, batch)
                return (torch.where(batch["real"], losses, 0) * seeds).sum(), seen

            slopes: tuple[State, State] = grad(total, has_aux=True)(params)
            return slopes

        mapped = vmap(of_one, randomness="error")
        slopes, seen = mapped(wanted.params, wanted.rest, dict(objective.held), dict(wanted.batch), wanted.seeds)
        return Grads([], [], slopes, seen)


class OtherUse(Exception):
    """A weight of which there is only a stand-in went into something that cannot ask for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


_SHAPES = frozenset(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_leaf"))
"""What asks about a tensor without reading it."""


class _Watch(TorchFunctionMode):
    """While active, each Linear by a learned weight leaves its input and its output, and no gradient of the weight; so do
    convolutions by, and look-ups in, a weight that stands apart."""

    def __init__(self, wanted: Pass, params: State) -> None:
        super().__init__()
        self.wanted, self.params = wanted, params
        self.names: dict[int, str] = {}
        self.version = wanted.batch["x"]._version
        self.seen: list[tuple[Tensor, Callable[[Tensor], Pair | Scattered]]] = []
        self.standing = {k: v for k, v in wanted.factored.items() if isinstance(v, Standing)}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dim() >= 2:
            x, w, b = _linear_arguments(*args, **kwargs)
            if id(w) in self.names:
                return _linear(self, self.names[id(w)], x, w, b)
        if self.standing and func not in _SHAPES:
            if func in _APART:
                out = _APART[func](self, func, *args, **kwargs)
                if out is not None:
                    return out
            for leaf in tree_leaves((args, kwargs)):
                if self.names.get(id(leaf)) in self.standing:
                    raise OtherUse(self.names[id(leaf)])
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        return func(*args, **kwargs)

    def name_of(self, weight: Tensor) -> str | None:
        """The name of a weight that stands apart."""
        name = self.names.get(id(weight))
        return name if name in self.standing else None

    def keep(self, y: Tensor, part: Callable[[Tensor], Pair | Scattered]) -> Tensor:
        """Have `part` of y's gradient."""
        y = y if y.requires_grad else y.requires_grad_()
        self.seen.append((y, part))
        return y

    def stacked(self, name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """x [C, B, ..., in], w [C, out, in], b [C, out]."""
        shape, input = x.shape, self.wanted.batch["x"]
        same = self.version == input._version and x.data_ptr() == input.data_ptr() and x.stride() == input.stride()
        raw = same and x.dim() == 3 and x.shape[:2] == input.shape[:2] and x.numel() == input.numel()
        x = x.flatten(1, -2)
        bank = self.wanted.factored.get(name)
        y = bank.linear(x, self.wanted.picks if raw else None) if bank is not None else None
        y = y if b is None or y is None else y + b.unsqueeze(1)
        y = linear(x, w.detach(), b) if y is None else y
        y = self.keep(y, lambda g: Pair(name, x.detach(), g, raw))
        return y.view(*shape[:-1], y.shape[-1])

    def looked_up(self, name: str, padding: int | None, at: Tensor) -> Tensor:
        """at [C, ...] -> rows of the table [C, ..., D]."""
        rows = at.flatten(1)

        def part(g: Tensor) -> Scattered:
            return Scattered(name, rows, g if padding is None else torch.where((rows != padding)[..., None], g, 0))

        y = self.keep(self.standing[name].rows(rows), part)
        return y.view(*at.shape, y.shape[-1])

    def convolved(self, name: str, func: Callable[..., Tensor], options: dict[str, Any], x: Tensor, b: Tensor | None) -> Tensor:
        """x [C, B, in, ...] -> [C, B, out, ...]."""
        clients, weight = len(x), self.params[name]
        x = x.flatten(0, 1)
        y = self.standing[name].convolution(func, x, options)
        outer = y.shape[2:]
        y = y.unflatten(0, (clients, -1)).flatten(3).mT.flatten(1, 2)

        def part(g: Tensor) -> Pair:
            flat = weight.dim() == 4  # conv1d is a conv2d of height 1
            sizes = {k: ((1, *_each(v, 1)) if flat else v) for k, v in {"dilation": 1, "stride": 1, **options}.items()}
            sizes["padding"] = (0, *_each(options.get("padding", 0), 1)) if flat else options.get("padding", 0)
            kernel = (1, *weight.shape[3:]) if flat else tuple(weight.shape[3:])
            patches = F.unfold(x.detach().unsqueeze(2) if flat else x.detach(), kernel, **sizes)
            return Pair(name, patches.mT.unflatten(0, (clients, -1)).flatten(1, 2), g)

        y = self.keep(y if b is None else y + b.unsqueeze(1), part)
        split: Tensor = y.view(clients, -1, math.prod(outer), y.shape[-1]).mT
        return split.reshape(*split.shape[:-1], *outer)


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x [C, N, in] by w [C, out, in], plus b [C, out]: one product where all clients have one weight."""
    if w.stride(0) == 0 or len(w) == 1:
        y = torch.mm(x.flatten(0, 1), w[0].T).view(*x.shape[:2], -1)
        return y if b is None else y + b.unsqueeze(1)
    return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own, whose rule for vmap lets gradients into the padding row when it is differentiated from outside."""
    if padding_idx is None:
        return F.embedding(input, weight, None, *args, **kwargs)
    y = F.embedding(input, weight, None, *args, **kwargs)
    return torch.where((input == padding_idx % weight.shape[0])[..., None], y.detach(), y)


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _each(v: Any, axes: int) -> tuple[int, ...]:
    return tuple(v) if isinstance(v, (tuple, list)) else (v,) * axes


def _embedding_apart(
    watch: _Watch,
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    name = watch.name_of(weight)
    if name is None or max_norm is not None or scale_grad_by_freq:
        return None
    padding = padding_idx if padding_idx is None else padding_idx % weight.shape[0]
    return _looked_up(watch, name, padding, input)


def _convolution_apart(
    watch: _Watch,
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    name = watch.name_of(weight)
    if name is None or groups != 1 or isinstance(padding, str) or input.dim() != weight.dim():
        return None
    return _convolved(watch, name, func, {"stride": stride, "padding": padding, "dilation": dilation}, input, bias)


_APART: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.embedding: _embedding_apart,
    F.conv1d: _convolution_apart,
    F.conv2d: _convolution_apart,
}
"""What knows how to read a weight that stands apart; None: not with these arguments."""


@custom_vmap
def _looked_up(watch: _Watch, name: str, padding: int | None, at: Tensor) -> Tensor:
    raise AssertionError("a watch is on under vmap only")


_looked_up.def_vmap(lambda size, watch, *args: watch.looked_up(*args), differentiable=True)


@custom_vmap
def _convolved(
    watch: _Watch, name: str, func: Callable[..., Tensor], options: dict[str, Any], x: Tensor, b: Tensor | None
) -> Tensor:
    raise AssertionError("a watch is on under vmap only")


_convolved.def_vmap(lambda size, watch, *args: watch.convolved(*args), differentiable=True)


@custom_vmap
def _linear(watch: _Watch, name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.linear(x, w, b)


_linear.def_vmap(lambda size, watch, *args: watch.stacked(*args), differentiable=True)
