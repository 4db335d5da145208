"""Gradients per example of a whole cohort, in the form in which they are small: layer by layer, as pairs (X, G).

For norms of gradients per example (ghost norms: Goodfellow 2015; Li et al., ICLR 2022) the gradients themselves need not be
built: of a Linear, `|G.T X|^2 = sum((X X.T) * (G G.T))`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from freehold.core.batching import custom_vmap
from freehold.core.objective import Objective
from freehold.core.steps import Batch
from freehold.core.trees import State


class ExamplePair(NamedTuple):
    """A part of one parameter's gradient for each example; a parameter that is used twice has two parts, which add up."""

    name: str
    kind: Literal["product", "rows", "each"]
    """product: `g[c, b].T @ x[c, b]`, in the shape of the weight (Linear, Conv).
    rows: `g[c, b, t]` in row `x[c, b, t]` (Embedding). each: `g[c, b]` itself (biases, scales of norms)."""
    x: Tensor
    """[C, B, T, in]; rows: [C, B, T] int64; each: empty."""
    g: Tensor
    """[C, B, T, out]; each: [C, B, *shape]."""


class ExamplePairs(NamedTuple):
    """What could be had in pairs."""

    pairs: list[ExamplePair]
    left: tuple[str, ...]
    """Parameters that a layer without such a form reads: their gradients have to be built."""
    why: str
    """Why something is left, in one line; empty if nothing is."""


def example_pairs(objective: Objective, params: State, rest: State, batch: Batch) -> ExamplePairs:
    """One pass for all clients and examples; every tensor has a leading client axis. The losses are added, not averaged, so
    that each G is one example's own; pulls and tilt have no part in it. Raises NotPrivate where a layer mixes examples.
    """
    learned = {k: v.detach().requires_grad_() for k, v in params.items()}
    watch = _Layers(batch["real"])

    def one(params: State, rest: State, held: State, batch: Batch) -> Tensor:
        watch.names = {id(v): k for k, v in params.items()}
        guarded: Any = {**batch, "key": _Key(), "alone": batch["live"]}
        return objective.losses({**held, **rest, **params}, guarded)[0]

    given = {k: v for k, v in batch.items() if k != "key"}
    try:
        with torch.enable_grad(), watch:
            losses = vmap(one, randomness="error")(learned, rest, dict(objective.held), given)
            total = torch.where(batch["real"], losses, 0).sum()
            sources = [*(y for *_, y in watch.seen), *learned.values()]
            slopes = torch.autograd.grad(total, sources, allow_unused=True)
    except _KeyUsed:
        return ExamplePairs([], tuple(params), "the model draws random numbers, which each example must draw for itself")
    except RuntimeError as error:
        return ExamplePairs([], tuple(params), str(error).splitlines()[0])
    pairs = [pair for (part, x, _), g in zip(watch.seen, slopes, strict=False) if g is not None for pair in part(x, g)]
    left = tuple(k for k, g in zip(learned, slopes[len(watch.seen) :], strict=True) if g is not None)
    left = tuple(dict.fromkeys(left))
    why = f"{', '.join(left)}: used by an operation that has no form in pairs" if left else ""
    return ExamplePairs([p for p in pairs if p.name not in left], left, why)


Part = Callable[[Tensor, Tensor], list[ExamplePair]]
"""(x, g) of a layer, stacked -> the pairs of its parameters."""


class _KeyUsed(Exception):
    pass


class _Key:
    """In place of a step's key."""

    def __getattr__(self, name: str) -> Any:
        raise _KeyUsed


class _Layers(TorchFunctionMode):
    """While active, layers with learned weights leave what they were given and what came out, and nothing on the weight."""

    def __init__(self, real: Tensor) -> None:
        super().__init__()
        self.real = real
        self.names: dict[int, str] = {}
        self.seen: list[tuple[Part, Tensor, Tensor]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(a, _Key) for a in (*args, *kwargs.values())):
            raise _KeyUsed
        rule = _LAYERS.get(func)
        return func(*args, **kwargs) if rule is None else rule(self, func, *args, **kwargs)

    def name(self, parameter: Tensor | None) -> str:
        """The name of a learned parameter; empty: something else."""
        return self.names.get(id(parameter), "")

    def still(self, parameter: Tensor | None) -> Tensor | None:
        """A parameter without a gradient, if it is learned."""
        return parameter.detach() if parameter is not None and self.name(parameter) else parameter


@custom_vmap
def _put_down(watch: _Layers, part: Part, x: Tensor, y: Tensor) -> Tensor:
    return y


def _put_down_all(size: int, watch: _Layers, part: Part, x: Tensor, y: Tensor) -> Tensor:
    y = y if y.requires_grad else y.detach().requires_grad_()
    watch.seen.append((part, x.detach(), y))
    return y.view_as(y)


_put_down.def_vmap(_put_down_all, differentiable=True)


def _product(name: str, bias: str) -> Part:
    """x [C, B, ..., in], g [C, B, ..., out]."""

    def part(x: Tensor, g: Tensor) -> list[ExamplePair]:
        x, g = (t.reshape(*t.shape[:2], -1, t.shape[-1]) for t in (x, g))
        found = [ExamplePair(name, "product", x, g)] if name else []
        return [*found, ExamplePair(bias, "each", x.new_empty(0), g.sum(2))] if bias else found

    return part


def _linear(watch: _Layers, func: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    part = _product(watch.name(w), watch.name(b))
    if x.dim() < 2 or not (watch.name(w) or watch.name(b)):
        return func(x, w, b)
    return _put_down(watch, part, x, func(x, watch.still(w), watch.still(b)))


def _conv2d(
    watch: _Layers,
    func: Callable[..., Tensor],
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or isinstance(padding, str) or x.dim() != 4 or not (watch.name(w) or watch.name(b)):
        return func(x, w, b, stride, padding, dilation, groups)
    inner, product = w.shape[2:], _product(watch.name(w), watch.name(b))

    def part(x: Tensor, g: Tensor) -> list[ExamplePair]:
        rows = F.unfold(x.flatten(0, 1), inner, dilation, padding, stride).mT
        return product(rows.unflatten(0, x.shape[:2]), g.flatten(3).mT)

    return _put_down(watch, part, x, func(x, watch.still(w), watch.still(b), stride, padding, dilation, groups))


def _embedding(
    watch: _Layers, func: Callable[..., Tensor], at: Tensor, w: Tensor, padding_idx: int | None = None, **more: Any
) -> Tensor:
    name = watch.name(w)
    if not name or more.get("max_norm") is not None or more.get("scale_grad_by_freq"):
        return func(at, w, padding_idx, **more)
    count = w.shape[0]

    def part(x: Tensor, g: Tensor) -> list[ExamplePair]:
        x, g = x.flatten(2) if x.dim() > 2 else x[..., None], g.reshape(*g.shape[:2], -1, g.shape[-1])
        g = g if padding_idx is None else torch.where((x != padding_idx % count)[..., None], g, 0)
        return [ExamplePair(name, "rows", x, g)]

    return _put_down(watch, part, at, func(at, watch.still(w), padding_idx, **more))


def _norm(
    watch: _Layers,
    func: Callable[..., Tensor],
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`layer_norm`, `group_norm`."""
    scale, shift = watch.name(weight), watch.name(bias)
    if not (scale or shift):
        return func(x, shape, weight, bias, eps)
    plain = func(x, shape, None, None, eps)
    of_channels = func is F.group_norm
    axes = 1 if of_channels else len(shape)
    like = weight if weight is not None else bias
    assert like is not None
    wide = (-1, *[1] * (x.dim() - 2)) if of_channels else tuple(like.shape)
    y = plain if weight is None else plain * (weight.detach() if scale else weight).view(wide)
    y = y if bias is None else y + (bias.detach() if shift else bias).view(wide)

    def part(x: Tensor, g: Tensor) -> list[ExamplePair]:
        over = [*range(3, g.dim())] if of_channels else [*range(2, g.dim() - axes)]
        found = [(scale, g * x), (shift, g)]
        nothing = g.new_empty(0)
        return [ExamplePair(name, "each", nothing, t.sum(over) if over else t) for name, t in found if name]

    return _put_down(watch, part, plain, y)


_LAYERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.embedding: _embedding,
    F.layer_norm: _norm,
    F.group_norm: _norm,
}
