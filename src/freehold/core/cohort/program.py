"""A plan: a recorded pass as a straight line of operations for a whole cohort, forward and backward, without autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from freehold.core.cohort import layers, operations
from freehold.core.cohort.convolutions import convolution
from freehold.core.cohort.operations import POINTWISE, RESHAPES, UNARY, Maker, Operation, Values
from freehold.core.cohort.passes import Grads, Pass
from freehold.core.cohort.recording import Call, CannotReplay, Recording, Ref

Make = Callable[[Maker, Call], Operation]


class Plan:
    """Runs a recorded pass anew."""

    def __init__(self, log: Recording) -> None:
        """CannotReplay if an operation isn't known."""
        self.log = log
        self.params = {k[7:]: v for k, v in log.inputs.items() if k.startswith("params/")}
        used = _ancestors(log, [log.losses, *log.buffers.values()])
        calls = [c for c in log.calls if c.out in used]
        self.needs = set(self.params.values())
        for call in calls:
            if call.func is not Tensor.detach and log.dtypes[call.out].is_floating_point and self.needs & set(call.inputs()):
                self.needs.add(call.out)
        make = Maker(log, self.needs)
        made = [_made(make, call) for call in calls]
        toward = _ancestors(log, [log.losses])
        self.backwards = [op for op in reversed(made) if op.backward is not None and op.out in toward]
        wanted = {s for op in self.backwards for s in op.saves} | set(log.buffers.values())
        self.forwards: list[Operation] = []
        for op in reversed(made):
            if op.out in wanted:
                self.forwards.insert(0, op)
                wanted |= set(op.inputs)
        self._find_raw(make)
        self.constants = {k: v for k, v in log.constants.items() if k in wanted}
        self.inputs = [(kind, name, slot) for key, slot in log.inputs.items() for kind, _, name in [key.partition("/")]]

    def _find_raw(self, make: Maker) -> None:
        """Weights that are given the batch's own `x` and nothing else, and whether nothing but these reads it."""
        views = {s for s in range(len(self.log.shapes)) if make.is_raw(s)}
        readers = [op for op in self.forwards if views & set(op.inputs) and op.out not in views]
        names = [make.raw_linears[op.out] for op in readers if op.out in make.raw_linears]
        linears = [self.log.inputs[f"params/{name}"] for name in names]
        used = [slot for call in self.log.calls for slot in call.inputs()]
        self.raw = frozenset(name for name, slot in zip(names, linears, strict=True) if used.count(slot) == 1)
        self.reads_x = len(self.raw) < len(readers)
        self.without_x = [op for op in self.forwards if op.out not in views]

    def reads_built(self, names: Iterable[str], but_by: Callable[..., Any] = F.linear) -> bool:
        """Whether anything else than that function, as its weight, reads one of these: then it cannot do without them."""
        slots = {self.params[name] for name in names if name in self.params}
        return any(
            slots & set(call.inputs()) if call.func is not but_by else slots & _besides_weight(call) for call in self.log.calls
        )

    def run(self, wanted: Pass) -> Grads:
        """Forward and backward."""
        values = Values(len(self.log.shapes), wanted)
        trees = {"params": wanted.params, "rest": wanted.rest, "held": wanted.objective.held, "batch": wanted.batch}
        for kind, name, slot in self.inputs:
            values[slot] = trees[kind].get(name)
        n = values.n
        for slot, constant in self.constants.items():
            values[slot] = constant.expand(n, *constant.shape)
        for op in self.forwards if "x" in wanted.batch else self.without_x:
            values[op.out] = op.forward(values)
        slopes: list[Tensor | None] = [None] * len(values)
        slopes[self.log.losses] = wanted.seeds
        needs = self.needs
        for op in self.backwards:
            g = slopes[op.out]
            if g is None or op.backward is None:
                continue
            slopes[op.out] = None
            for slot, slope in op.backward(values, g):
                if slot in needs:
                    before = slopes[slot]
                    slopes[slot] = slope if before is None else before + slope
        rest = {name: g for name, slot in self.params.items() if (g := slopes[slot]) is not None}
        return Grads(values.pairs, values.scattered, rest, {name: values[slot] for name, slot in self.log.buffers.items()})


def _besides_weight(call: Call) -> set[int]:
    """What a Linear or a look-up reads besides its weight."""
    given = dict(zip(("input", "weight", "bias"), call.args, strict=False)) | dict(call.kwargs)
    return {value.slot for name, value in given.items() if name != "weight" and isinstance(value, Ref)}


def _ancestors(log: Recording, of: Iterable[int]) -> set[int]:
    found = set(of)
    for call in reversed(log.calls):
        if call.out in found:
            found |= set(call.inputs())
    return found


def _made(make: Maker, call: Call) -> Operation:
    known = _OPERATIONS.get(call.func)
    if known is not None:
        return known(make, call)
    if call.out not in make.needs:
        return _mapped(make, call)
    name = getattr(call.func, "__name__", str(call.func))
    raise CannotReplay(f"{name} of what is learned has no operation for a cohort")


def _mapped(make: Maker, call: Call) -> Operation:
    """Any function of what is not learned, by its batching rule."""
    func, slots = call.func, tuple(call.inputs())

    def forward(values: Values) -> Tensor:
        def one(*tensors: Tensor) -> Any:
            at = dict(zip(slots, tensors, strict=True))
            args, kwargs = tree_map(lambda a: at[a.slot] if isinstance(a, Ref) else a, (call.args, dict(call.kwargs)))
            return func(*args, **kwargs)

        found: Tensor = vmap(one, randomness="error")(*(values[s] for s in slots))
        return found

    return make.op(call, forward, None)


_CASTS = (
    Tensor.to,
    Tensor.float,
    Tensor.double,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.long,
    Tensor.int,
    Tensor.bool,
    Tensor.type_as,
)

_OPERATIONS: dict[Callable[..., Any], Make] = {
    **dict.fromkeys(RESHAPES, operations.reshaped),
    **dict.fromkeys(POINTWISE, operations.pointwise),
    **dict.fromkeys((Tensor.transpose, torch.transpose), operations.transposed),
    **dict.fromkeys((Tensor.clone, torch.clone, Tensor.contiguous), operations.same),
    **dict.fromkeys((Tensor.detach, torch.detach), operations.detached),
    **dict.fromkeys(_CASTS, operations.cast),
    Tensor.__getitem__: operations.indexed,
    **UNARY,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), operations.binary("+")),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), operations.binary("-")),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), operations.binary("*")),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), operations.binary("/")),
    Tensor.__rsub__: operations.reverse("-"),
    Tensor.__rtruediv__: operations.reverse("/"),
    **dict.fromkeys((torch.where, Tensor.where), operations.chosen),
    **dict.fromkeys((torch.sum, Tensor.sum), operations.reduced(mean=False)),
    **dict.fromkeys((torch.mean, Tensor.mean), operations.reduced(mean=True)),
    F.linear: layers.linear,
    F.embedding: layers.embedding,
    F.conv1d: convolution(1),
    F.conv2d: convolution(2),
    **dict.fromkeys((F.layer_norm, F.group_norm), layers.normalized),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d), layers.of_examples),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.hardtanh, F.relu6, F.mish, F.hardswish), layers.of_examples),
    F.cross_entropy: layers.cross_entropy,
    F.mse_loss: layers.elementwise_loss(lambda x, y: 2 * (x - y)),
    F.l1_loss: layers.elementwise_loss(lambda x, y: (x - y).sign()),
    F.binary_cross_entropy_with_logits: layers.elementwise_loss(lambda x, y: torch.sigmoid(x) - y),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), layers.softmax(logarithm=True)),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), layers.softmax(logarithm=False)),
}
"""What plans can do. Anything else of what is learned is left to autograd."""
