"""Operations of a plan: each for a whole cohort, forward and backward, on values with a leading client axis.

An operation is made for one recorded call. `forward(values)` gives its value. `backward(values, g)` gives the gradients of its
inputs, by their numbers. `saves` are the values that its backward pass reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.core.cohort.passes import Pair, Pass, Scattered
from freehold.core.cohort.recording import Call, CannotReplay, Recording, Ref


class Values(list[Any]):
    """The values of a pass by number, each with a leading client axis; those not made yet are None."""

    def __init__(self, count: int, wanted: Pass) -> None:
        super().__init__([None] * count)
        self.wanted = wanted
        self.n = wanted.seeds.shape[0]
        self.pairs: list[Pair] = []
        self.scattered: list[Scattered] = []
        self.kept: dict[int, Any] = {}
        """What an operation keeps for its backward pass, by the number of its value."""


Gradients = Iterable[tuple[int, Tensor]]


@dataclass(kw_only=True)
class Operation:
    """One step of a plan."""

    out: int
    inputs: tuple[int, ...]
    saves: tuple[int, ...]
    forward: Callable[[Values], Tensor]
    backward: Callable[[Values, Tensor], Gradients] | None
    """None: no gradient passes."""


class Maker:
    """Makes operations for the calls of a recording."""

    def __init__(self, log: Recording, needs: set[int]) -> None:
        self.log, self.needs = log, needs
        """`needs`: values that a gradient is wanted of."""
        self.raw_linears: dict[int, str] = {}
        """Value -> the learned weight that made it of the batch's own `x`."""

    def shape(self, ref: Any) -> tuple[int, ...]:
        """Shape of a value, for one client."""
        return self.log.shapes[ref.slot] if isinstance(ref, Ref) else ()

    def name(self, ref: Any) -> str | None:
        """The name of a learned parameter; None: something else."""
        slot = ref.slot if isinstance(ref, Ref) else -1
        return next((k[7:] for k, v in self.log.inputs.items() if v == slot and k.startswith("params/")), None)

    def is_raw(self, slot: int) -> bool:
        """Whether a value is the batch's own `x`, perhaps in another shape, one row per example."""
        raw = self.log.inputs["batch/x"]
        views = {call.out: call.args[0].slot for call in self.log.calls if call.func in RESHAPES}
        shape, size = self.log.shapes[slot], self.log.shapes[raw][0]
        while slot in views:
            slot = views[slot]
        return slot == raw and shape[0] == size

    def lift(self, ref: Any, rank: int) -> Callable[[Values], Any]:
        """How to read an operand so that it broadcasts against one client's values of `rank` axes."""
        if not isinstance(ref, Ref):
            return lambda values: ref
        slot, shape = ref.slot, self.log.shapes[ref.slot]
        if len(shape) == rank:
            return lambda values: values[slot]
        ones = [1] * (rank - len(shape))
        return lambda values: values[slot].view(values.n, *ones, *shape)

    def op(
        self,
        call: Call,
        forward: Callable[[Values], Tensor],
        backward: Callable[[Values, Tensor], Gradients] | None,
        saves: Iterable[Any] = (),
    ) -> Operation:
        """An operation of a call."""
        wanted = call.out in self.needs
        return Operation(
            out=call.out,
            inputs=tuple(call.inputs()),
            saves=tuple(s.slot if isinstance(s, Ref) else s for s in saves if isinstance(s, (Ref, int))) if wanted else (),
            forward=forward,
            backward=backward if wanted else None,
        )


# ---------------------------------------------------------------- shapes


def reshaped(make: Maker, call: Call) -> Operation:
    """Any function that gives one client's elements another shape."""
    source = call.args[0].slot
    before, after = make.log.shapes[source], make.log.shapes[call.out]

    def forward(values: Values) -> Tensor:
        x: Tensor = values[source]
        return x.reshape(values.n, *after)

    def backward(values: Values, g: Tensor) -> Gradients:
        return ((source, g.reshape(values.n, *before)),)

    return make.op(call, forward, backward)


def transposed(make: Maker, call: Call) -> Operation:
    """`transpose(a, b)`, `mT`-like swaps of two axes."""
    (source, a, b) = call.args
    rank = len(make.shape(source))
    a, b = a % rank + 1, b % rank + 1
    return make.op(
        call, lambda values: values[source.slot].transpose(a, b), lambda values, g: ((source.slot, g.transpose(a, b)),)
    )


def indexed(make: Maker, call: Call) -> Operation:
    """`x[...]` by slices, numbers, None and `...`; by an index tensor only where nothing is learned."""
    source, index = call.args
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in index):
        return gathered(make, call, index)
    lifted = (slice(None), *index)
    shape = make.shape(source)

    def backward(values: Values, g: Tensor) -> Gradients:
        whole = g.new_zeros(len(g), *shape)
        whole[lifted] = g
        return ((source.slot, whole),)

    return make.op(call, lambda values: values[source.slot][lifted], backward)


def gathered(make: Maker, call: Call, index: tuple[Any, ...]) -> Operation:
    """`table[index]` along the first axis, for a table that is not learned."""
    source = call.args[0]
    if len(index) != 1 or not isinstance(index[0], Ref) or source.slot in make.needs:
        raise CannotReplay("it indexes a learned tensor by another")
    at = index[0].slot
    if make.log.dtypes[at] != torch.int64:
        raise CannotReplay("it indexes by a mask")

    def forward(values: Values) -> Tensor:
        table, rows = values[source.slot], values[at]
        found: Tensor = table[torch.arange(len(rows)).view(-1, *[1] * (rows.dim() - 1)), rows]
        return found

    return make.op(call, forward, None)


def same(make: Maker, call: Call) -> Operation:
    """`clone`, `contiguous`: the same values."""
    slot = call.args[0].slot
    return make.op(call, lambda values: values[slot], lambda values, g: ((slot, g),))


def detached(make: Maker, call: Call) -> Operation:
    """The same values; no gradient passes."""
    slot = call.args[0].slot
    return make.op(call, lambda values: values[slot], None)


def cast(make: Maker, call: Call) -> Operation:
    """`to(dtype)`, `float()` and their kin."""
    slot, dtype, before = call.args[0].slot, make.log.dtypes[call.out], make.log.dtypes[call.args[0].slot]
    return make.op(call, lambda values: values[slot].to(dtype), lambda values, g: ((slot, g.to(before)),))


# ---------------------------------------------------------------- one value at a time


def unary(derivative: Callable[..., Tensor], of: str) -> Callable[[Maker, Call], Operation]:
    """An elementwise function whose derivative times g is `derivative(g, t, ...)`; t is its input or its output."""

    def make_it(make: Maker, call: Call) -> Operation:
        x, *rest = call.args
        kwargs = {k: v for k, v in call.kwargs.items() if k != "inplace"}
        if any(isinstance(a, Ref) for a in (*rest, *kwargs.values())):
            raise CannotReplay(f"{call.func.__name__} with a tensor for an option")
        func, saved = call.func, x.slot if of == "input" else call.out
        return make.op(
            call,
            lambda values: func(values[x.slot], *rest, **kwargs),
            lambda values, g: ((x.slot, derivative(g, values[saved], *rest, **kwargs)),),
            saves=(saved,),
        )

    return make_it


def _gelu(g: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        t = torch.tanh(inner)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x))
    return g * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _silu(g: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return g * s * (1 + x * (1 - s))


def _elu(g: Tensor, x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, g, g * alpha * torch.exp(x.clamp(max=0)))


def _leaky(g: Tensor, x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, g, g * negative_slope)


def _softplus(g: Tensor, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return torch.where(x * beta > threshold, g, g * torch.sigmoid(x * beta))


def _power(g: Tensor, x: Tensor, exponent: float = 2) -> Tensor:
    return g * exponent * x ** (exponent - 1)


UNARY: dict[Callable[..., Any], Callable[[Maker, Call], Operation]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), unary(lambda g, y: g * (y > 0), "output")),
    **dict.fromkeys((torch.tanh, Tensor.tanh), unary(lambda g, y: g * (1 - y * y), "output")),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), unary(lambda g, y: g * (y * (1 - y)), "output")),
    **dict.fromkeys((torch.exp, Tensor.exp), unary(lambda g, y: g * y, "output")),
    **dict.fromkeys((torch.log, Tensor.log), unary(lambda g, x: g / x, "input")),
    **dict.fromkeys((torch.sqrt, Tensor.sqrt), unary(lambda g, y: g / (2 * y), "output")),
    **dict.fromkeys((torch.square, Tensor.square), unary(lambda g, x: g * (2 * x), "input")),
    **dict.fromkeys((torch.neg, Tensor.neg, Tensor.__neg__), unary(lambda g, x: -g, "input")),
    **dict.fromkeys((Tensor.pow, torch.pow, Tensor.__pow__), unary(_power, "input")),
    F.gelu: unary(_gelu, "input"),
    F.silu: unary(_silu, "input"),
    F.elu: unary(_elu, "input"),
    F.leaky_relu: unary(_leaky, "input"),
    F.softplus: unary(_softplus, "input"),
}


# ---------------------------------------------------------------- two operands


def _narrowed(g: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of an operand [n, *shape] that was broadcast."""
    extra = g.dim() - 1 - len(shape)
    axes = [*range(1, 1 + extra), *(i + 1 + extra for i, s in enumerate(shape) if s == 1 and g.shape[i + 1 + extra] != 1)]
    return (g.sum(axes, keepdim=True) if axes else g).reshape(len(g), *shape)


def binary(kind: str) -> Callable[[Maker, Call], Operation]:
    """`a + b`, `a - b`, `a * b`, `a / b`, with broadcasting."""

    def make_it(make: Maker, call: Call) -> Operation:
        a, b = call.args
        if call.kwargs:
            raise CannotReplay(f"{kind} with options")
        rank = len(make.log.shapes[call.out])
        left, right = make.lift(a, rank), make.lift(b, rank)
        func, needs = _ARITHMETIC[kind], make.needs
        ours = [r for r in (a, b) if isinstance(r, Ref)]
        at_a, at_b = (isinstance(r, Ref) and r.slot in needs for r in (a, b))
        shape_a, shape_b = make.shape(a), make.shape(b)

        def backward(values: Values, g: Tensor) -> Gradients:
            if at_a:
                slope = g if kind in "+-" else g * right(values) if kind == "*" else g / right(values)
                yield a.slot, _narrowed(slope, shape_a)
            if at_b:
                slope = (
                    g
                    if kind == "+"
                    else -g
                    if kind == "-"
                    else g * left(values)
                    if kind == "*"
                    else -g * left(values) / right(values).square()
                )
                yield b.slot, _narrowed(slope, shape_b)

        saved = ours if kind in "*/" else []
        out, dtypes = make.log.dtypes[call.out], {make.log.dtypes[r.slot] for r in ours}
        if out.is_floating_point and len(dtypes) > 1:  # a number without axes gives way to others' dtype; lifted it would not
            return make.op(call, lambda values: func(left(values), right(values)).to(out), backward, saves=saved)
        return make.op(call, lambda values: func(left(values), right(values)), backward, saves=saved)

    return make_it


_ARITHMETIC: dict[str, Callable[[Any, Any], Tensor]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def reverse(kind: str) -> Callable[[Maker, Call], Operation]:
    """`__rsub__` and its kin: the operands the other way round."""

    def make_it(make: Maker, call: Call) -> Operation:
        a, b = call.args
        return binary(kind)(make, Call(func=call.func, args=(b, a), kwargs=call.kwargs, out=call.out))

    return make_it


def pointwise(make: Maker, call: Call) -> Operation:
    """A function of values one by one, of what is not learned: keys, masks, labels."""
    rank = len(make.log.shapes[call.out])
    args = [make.lift(a, rank) for a in call.args]
    func, kwargs = call.func, dict(call.kwargs)
    if any(isinstance(v, Ref) for v in kwargs.values()) or call.out in make.needs:
        raise CannotReplay(f"{call.func.__name__} of what is learned")
    return make.op(call, lambda values: func(*(a(values) for a in args), **kwargs), None)


def chosen(make: Maker, call: Call) -> Operation:
    """`where(mask, a, b)`."""
    mask, a, b = call.args
    rank = len(make.log.shapes[call.out])
    on, left, right = (make.lift(r, rank) for r in (mask, a, b))
    at_a, at_b = (isinstance(r, Ref) and r.slot in make.needs for r in (a, b))
    shape_a, shape_b = make.shape(a), make.shape(b)

    def backward(values: Values, g: Tensor) -> Gradients:
        if at_a:
            yield a.slot, _narrowed(torch.where(on(values), g, 0), shape_a)
        if at_b:
            yield b.slot, _narrowed(torch.where(on(values), 0, g), shape_b)

    return make.op(call, lambda values: torch.where(on(values), left(values), right(values)), backward, saves=(mask,))


# ---------------------------------------------------------------- sums


def reduced(mean: bool) -> Callable[[Maker, Call], Operation]:
    """`sum(dim, keepdim)` and `mean(dim, keepdim)`, over all axes or some."""

    def make_it(make: Maker, call: Call) -> Operation:
        (x, *rest), kwargs = call.args, dict(call.kwargs)
        dim = rest[0] if rest else kwargs.pop("dim", None)
        kwargs.pop("keepdim", None)
        shape = make.shape(x)
        if kwargs.get("dtype") is not None or len(rest) > 2:
            raise CannotReplay("a sum in another dtype")
        axes = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
        axes = [a % len(shape) for a in axes]
        after = make.log.shapes[call.out]
        wide = [1 if i in axes else s for i, s in enumerate(shape)]
        count = math.prod(shape[a] for a in axes)
        lifted = [a + 1 for a in axes]

        def forward(values: Values) -> Tensor:
            t: Tensor = values[x.slot]
            if not lifted:
                return t
            return (t.mean(lifted) if mean else t.sum(lifted)).reshape(len(t), *after)

        def backward(values: Values, g: Tensor) -> Gradients:
            g = g / count if mean else g
            return ((x.slot, g.reshape(len(g), *wide).expand(len(g), *shape)),)

        return make.op(call, forward, backward)

    return make_it


RESHAPES: frozenset[Callable[..., Any]] = frozenset(
    (
        *(Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten, Tensor.squeeze, Tensor.unsqueeze, Tensor.view_as),
        *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten),
    )
)
"""What gives a tensor's elements another shape, in the same order."""

POINTWISE: frozenset[Callable[..., Any]] = frozenset(
    (
        *(Tensor.__xor__, Tensor.__and__, Tensor.__or__, Tensor.__rshift__, Tensor.__invert__, Tensor.__mod__),
        *(Tensor.ge, Tensor.__ge__, Tensor.gt, Tensor.__gt__, Tensor.le, Tensor.__le__, Tensor.lt, Tensor.__lt__),
        *(Tensor.eq, Tensor.__eq__, Tensor.ne, Tensor.__ne__, Tensor.round, torch.round, Tensor.floor, torch.floor),
        *(Tensor.clamp, torch.clamp, Tensor.abs, torch.abs),
    )
)
"""Functions of values one by one that keys, masks and labels go through."""
