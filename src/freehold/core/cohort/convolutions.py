"""Convolutions of a plan: all clients in one grouped convolution, or one after the other; autograd for this operation alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freehold.core.cohort.layers import bound
from freehold.core.cohort.operations import Gradients, Maker, Operation, Values
from freehold.core.cohort.recording import Call, CannotReplay


def convolution(axes: int) -> Callable[[Maker, Call], Operation]:
    """`conv1d`, `conv2d`.

    Grouped, the clients' channels lie side by side, which costs a copy of what comes in and goes out. Thin layers are slow that
    way, and large maps are as fast one client after the other (measured with oneDNN: 1 -> 32 channels, and 26 x 26 values).
    """

    def make_it(make: Maker, call: Call) -> Operation:
        given = bound(call, "input weight bias stride padding dilation groups")
        x, w = given["input"], given["weight"]
        if isinstance(given["padding"], str) or len(make.shape(x)) != axes + 2:
            raise CannotReplay(f"{call.func.__name__} with padding by name, or without a batch")
        thin = make.shape(w)[1] < 16 or math.prod(make.shape(x)[2:]) > 400
        return (_one_by_one if thin else _grouped)(make, call, given, axes)

    return make_it


def _one_by_one(make: Maker, call: Call, given: dict[str, Any], axes: int) -> Operation:
    x, w, b, groups = given["input"], given["weight"], given["bias"], given["groups"] or 1
    options, func = _options(given), call.func
    x_too, w_too = (r.slot in make.needs for r in (x, w))

    def forward(values: Values) -> Tensor:
        t, weight = values[x.slot], values[w.slot]
        bias = None if b is None else values[b.slot]
        kept, found = [], []
        for c in range(values.n):
            inside, own = t[c].detach().requires_grad_(x_too), weight[c].detach().requires_grad_(w_too)
            with torch.enable_grad():
                y = func(inside, own, None if bias is None else bias[c].detach(), groups=groups, **options)
            kept.append((inside, own, y))
            found.append(y.detach())
        values.kept[call.out] = kept
        return torch.stack(found)

    def backward(values: Values, g: Tensor) -> Gradients:
        slopes: list[Any] = []
        for (inside, own, y), slope in zip(values.kept.pop(call.out), g, strict=True):
            slopes.append(torch.autograd.grad(y, [t for t, too in ((inside, x_too), (own, w_too)) if too], slope))
        columns = [torch.stack(each) for each in zip(*slopes, strict=True)]
        if x_too:
            yield x.slot, columns[0]
        if w_too:
            yield w.slot, columns[-1]
        if b is not None and b.slot in make.needs:
            yield b.slot, g.sum((1, *range(3, g.dim())))

    return make.op(call, forward, backward, saves=(call.out,))


def _grouped(make: Maker, call: Call, given: dict[str, Any], axes: int) -> Operation:
    x, w, b, groups = given["input"], given["weight"], given["bias"], given["groups"] or 1
    options, func = _options(given), call.func
    x_too, w_too = (r.slot in make.needs for r in (x, w))

    def wide(t: Tensor) -> Tensor:
        """[n, B, C, ...] -> [B, n C, ...]."""
        return t.transpose(0, 1).flatten(1, 2)

    def forward(values: Values) -> Tensor:
        n = values.n
        inside = wide(values[x.slot]).detach().requires_grad_(x_too)
        weight = values[w.slot].flatten(0, 1).detach().requires_grad_(w_too)
        with torch.enable_grad():
            y: Tensor = func(inside, weight, None, groups=n * groups, **options)
        values.kept[call.out] = (inside, weight, y)
        y = y.detach().unflatten(1, (n, -1)).transpose(0, 1)
        return y if b is None else y + values[b.slot].view(n, 1, -1, *[1] * axes)

    def backward(values: Values, g: Tensor) -> Gradients:
        n = values.n
        inside, weight, y = values.kept.pop(call.out)
        wanted = [t for t, too in ((inside, x_too), (weight, w_too)) if too]
        found = list(torch.autograd.grad(y, wanted, wide(g)))
        if x_too:
            yield x.slot, found.pop(0).unflatten(1, (n, -1)).transpose(0, 1)
        if w_too:
            yield w.slot, found.pop(0).unflatten(0, (n, -1))
        if b is not None and b.slot in make.needs:
            yield b.slot, g.sum((1, *range(3, g.dim())))

    return make.op(call, forward, backward, saves=(call.out,))


def _options(given: dict[str, Any]) -> dict[str, Any]:
    return {k: given[k] for k in ("stride", "padding", "dilation") if given[k] is not None}
