"""Operations of a plan that have learned weights, and losses: the pieces of networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.core.cohort.operations import Gradients, Maker, Operation, Values
from freehold.core.cohort.passes import Pair, Scattered
from freehold.core.cohort.recording import Call, CannotReplay, Ref
from freehold.core.cohort.tape import linear as product


def bound(call: Call, names: str, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name; CannotReplay if there is one that isn't known or not at its default."""
    found = dict(zip(names.split(), call.args, strict=False)) | dict(call.kwargs)
    for name, value in found.items():
        if name not in names.split() and (name not in defaults or value != defaults[name]):
            raise CannotReplay(f"{call.func.__name__} with {name}")
    return {**dict.fromkeys(names.split()), **found}


def linear(make: Maker, call: Call) -> Operation:
    """`F.linear`: a learned weight's gradient stays a pair (X, G)."""
    given = bound(call, "input weight bias")
    x, w, b = given["input"], given["weight"], given["bias"]
    into, name = make.shape(x)[-1], make.name(w)
    rows = math.prod(make.shape(x)[:-1])
    outer = make.shape(x)[:-1]
    raw = make.is_raw(x.slot) and len(outer) == 1

    if raw and name:
        make.raw_linears[call.out] = name

    def forward(values: Values) -> Tensor:
        bank = values.wanted.factored.get(name or "")
        bias = None if b is None else values[b.slot]
        if bank is not None and bank.own and raw and values.wanted.picks is not None:  # x may not have been read
            y = bank.linear(values.wanted.seeds, values.wanted.picks)
            return y if bias is None else y.add_(bias.unsqueeze(1))
        t = values[x.slot].reshape(values.n, rows, into)
        if bank is None:
            y = product(t, values[w.slot], bias)
        else:
            y = bank.linear(t, values.wanted.picks if raw else None)
            y = y if bias is None else y.add_(bias.unsqueeze(1))
        return y if len(outer) == 1 else y.view(values.n, *outer, -1)

    x_too, w_too, b_too = (isinstance(r, Ref) and r.slot in make.needs for r in (x, w, b))

    def backward(values: Values, g: Tensor) -> Gradients:
        n = values.n
        g = g.reshape(n, rows, -1)
        if b_too:
            yield b.slot, g.sum(1)
        if x_too:
            bank, weight = values.wanted.factored.get(name or ""), values[w.slot]
            if bank is not None:
                back = bank.back(g)
            elif weight.stride(0) == 0:
                back = torch.mm(g.flatten(0, 1), weight[0]).view(n, rows, into)
            else:
                back = torch.bmm(g, weight)
            yield x.slot, back.view(n, *outer, into)
        t = values[x.slot]
        if name:
            values.pairs.append(Pair(name, g if t is None else t.reshape(n, rows, into), g, raw))
        elif w_too:
            yield w.slot, torch.bmm(g.mT, t.reshape(n, rows, into))

    return make.op(call, forward, backward, saves=(x, w))


def embedding(make: Maker, call: Call) -> Operation:
    """`F.embedding`: the gradient stays with the rows that were read."""
    given = bound(call, "input weight padding_idx sparse", max_norm=None, norm_type=2.0, scale_grad_by_freq=False)
    at, table, padding = given["input"], given["weight"], given["padding_idx"]
    count, width = make.shape(table)
    name, inner = make.name(table), make.shape(at)
    padding = padding % count if padding is not None else None

    def forward(values: Values) -> Tensor:
        t, rows = values[table.slot], values[at.slot]
        n = values.n
        kept = values.wanted.tables.get(name or "")
        if kept is not None:
            return kept.read(rows.reshape(n, -1)).view(n, *inner, width)
        if t.stride(0) == 0:
            shared: Tensor = t[0].index_select(0, rows.reshape(-1))
            return shared.view(n, *inner, width)
        rows = rows.reshape(n, -1) + torch.arange(n, device=rows.device)[:, None] * count
        own: Tensor = t.reshape(-1, width).index_select(0, rows.view(-1))
        return own.view(n, *inner, width)

    def backward(values: Values, g: Tensor) -> Gradients:
        rows = values[at.slot]
        rows, g = rows.reshape(len(rows), -1), g.reshape(len(rows), -1, width)
        if padding is not None:
            g = torch.where((rows != padding)[..., None], g, 0)
        part = Scattered(name or "", rows, g)
        if name:
            values.scattered.append(part)
            return
        whole = g.new_zeros(len(g), count, width)
        part.add_to(whole, 1)
        yield table.slot, whole

    return make.op(call, forward, backward, saves=(at,))


def of_examples(make: Maker, call: Call) -> Operation:
    """A function that treats the examples of a batch apart and has no weights: autograd for this operation alone."""
    x, *rest = call.args
    kwargs = {k: v for k, v in call.kwargs.items() if k != "inplace"}
    if kwargs.get("return_indices"):
        raise CannotReplay("a pool that gives its indices")
    func, learned, after = call.func, x.slot in make.needs, make.log.shapes[call.out]

    def forward(values: Values) -> Tensor:
        t = values[x.slot]
        if not learned:
            out: Tensor = func(t.flatten(0, 1), *rest, **kwargs)
            return out.view(len(t), *after)
        inside = t.flatten(0, 1).detach().requires_grad_()
        with torch.enable_grad():
            y = func(inside, *rest, **kwargs)
        values.kept[call.out] = (inside, y)
        return y.detach().view(len(t), *after)  # type: ignore[no-any-return]

    def backward(values: Values, g: Tensor) -> Gradients:
        inside, y = values.kept.pop(call.out)
        (found,) = torch.autograd.grad(y, (inside,), g.reshape(y.shape))
        return ((x.slot, found.unflatten(0, g.shape[:2])),)

    return make.op(call, forward, backward, saves=(call.out,))


def normalized(make: Maker, call: Call) -> Operation:
    """`layer_norm` and `group_norm`: Ba et al. 2016, Wu and He 2018."""
    by_group = call.func is F.group_norm
    given = bound(call, f"input {'num_groups' if by_group else 'normalized_shape'} weight bias eps")
    x, w, b = given["input"], given["weight"], given["bias"]
    eps, inner = 1e-5 if given["eps"] is None else given["eps"], make.shape(x)
    if by_group:
        rows, scale = inner[0] * given["num_groups"], (inner[1], *[1] * (len(inner) - 2))
    else:
        scale = tuple(given["normalized_shape"])
        rows = math.prod(inner[: len(inner) - len(scale)])

    def wide(t: Tensor) -> Tensor:
        return t.view(len(t), *[1] * (len(inner) - len(scale)), *scale)

    def narrow(g: Tensor) -> Tensor:
        axes = [1, *range(3, g.dim())] if by_group else [*range(1, 1 + len(inner) - len(scale))]
        return g.sum(axes) if axes else g

    def forward(values: Values) -> Tensor:
        t = values[x.slot]
        flat = t.reshape(len(t) * rows, -1)
        variance, mean = torch.var_mean(flat, 1, correction=0, keepdim=True)
        rate = (variance + eps).rsqrt()
        plain = (flat - mean) * rate
        values.kept[call.out] = (plain, rate)
        y: Tensor = plain.view(t.shape)
        y = y if w is None else y * wide(values[w.slot])
        return y if b is None else y + wide(values[b.slot])

    def backward(values: Values, g: Tensor) -> Gradients:
        plain, rate = values.kept[call.out]
        if b is not None and b.slot in make.needs:
            yield b.slot, narrow(g)
        if w is not None and w.slot in make.needs:
            yield w.slot, narrow(g * plain.view(g.shape))
        if x.slot in make.needs:
            g = (g if w is None else g * wide(values[w.slot])).reshape(plain.shape)
            back = (g - g.mean(1, keepdim=True) - plain * (g * plain).mean(1, keepdim=True)) * rate
            yield x.slot, back.view(len(values[x.slot]), *inner)

    return make.op(call, forward, backward, saves=(call.out, w))


# ---------------------------------------------------------------- losses


def cross_entropy(make: Maker, call: Call) -> Operation:
    """Per example, of classes by number."""
    given = bound(call, "input target weight size_average ignore_index reduce reduction label_smoothing")
    x, y, smooth = given["input"], given["target"], given["label_smoothing"] or 0.0
    ignored = -100 if given["ignore_index"] is None else given["ignore_index"]
    bare = given["weight"] is None and given["reduction"] == "none" and given["reduce"] is None and given["size_average"] is None
    if not bare or make.log.dtypes[y.slot] != torch.int64 or y.slot in make.needs or len(make.shape(x)) < 2:
        raise CannotReplay("a cross entropy with weights, a reduction or soft labels")
    classes = make.shape(x)[1]

    def forward(values: Values) -> Tensor:
        logits, at = values[x.slot], values[y.slot]
        inner = at.shape[1:]
        out: Tensor = F.cross_entropy(
            logits.flatten(0, 1), at.flatten(0, 1), ignore_index=ignored, reduction="none", label_smoothing=smooth
        )
        return out.view(len(at), *inner)

    def backward(values: Values, g: Tensor) -> Gradients:
        at = values[y.slot].unsqueeze(2)
        slope = values[x.slot].softmax(2)
        minus = slope.new_full((1,), smooth - 1.0).expand(at.shape)
        slope = slope.scatter_add_(2, at.clamp(0, classes - 1), minus)
        if smooth:
            slope -= smooth / classes
        g = torch.where(at != ignored, g.unsqueeze(2), 0)
        return ((x.slot, slope.mul_(g)),)

    return make.op(call, forward, backward, saves=(x, y))


def elementwise_loss(slope: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Maker, Call], Operation]:
    """A loss of (input, target) of one shape; `slope(input, target)` is its derivative by the input."""

    def make_it(make: Maker, call: Call) -> Operation:
        given = bound(call, "input target", weight=None, size_average=None, reduce=None, reduction="none", pos_weight=None)
        x, y, func = given["input"], given["target"], call.func
        if call.kwargs.get("reduction") != "none" or y.slot in make.needs or make.shape(x) != make.shape(y):
            raise CannotReplay(f"{func.__name__} with a reduction, with broadcasting, or towards what is learned")
        return make.op(
            call,
            lambda values: func(values[x.slot], values[y.slot], reduction="none"),
            lambda values, g: ((x.slot, g * slope(values[x.slot], values[y.slot])),),
            saves=(x, y),
        )

    return make_it


def softmax(logarithm: bool) -> Callable[[Maker, Call], Operation]:
    """`softmax(dim)` and `log_softmax(dim)`."""

    def make_it(make: Maker, call: Call) -> Operation:
        given = bound(call, "input dim", _stacklevel=5, dtype=None)
        x, dim = given["input"], given["dim"]
        if not isinstance(dim, int):
            raise CannotReplay("a softmax without an axis")
        dim = dim % len(make.shape(x)) + 1

        def backward(values: Values, g: Tensor) -> Gradients:
            y = values[call.out]
            back = g - y.exp() * g.sum(dim, keepdim=True) if logarithm else y * (g - (g * y).sum(dim, keepdim=True))
            return ((x.slot, back),)

        return make.op(
            call,
            lambda values: values[x.slot].log_softmax(dim) if logarithm else values[x.slot].softmax(dim),
            backward,
            saves=(call.out,),
        )

    return make_it
