"""The first pass of a model, put down as a list of operations on numbered values.

One client's pass is watched. What it does with tensors is recorded; what depends on their values outside of tensors (a branch, a
print, a random number) can't be, and is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from freehold.core.batching import is_mapped
from freehold.core.objective import Objective
from freehold.core.steps import Batch
from freehold.core.trees import State
from freehold.errors import HiddenTensor


class CannotReplay(Exception):
    """Why a model's pass cannot be put down as a plan: a reason for people."""


@dataclass(frozen=True)
class Ref:
    """A value, by its number."""

    slot: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    """Tensors are Refs."""
    kwargs: Mapping[str, Any]
    out: int

    def inputs(self) -> Iterator[int]:
        """The values it reads."""
        found: list[int] = []
        tree_map(lambda a: found.append(a.slot) if isinstance(a, Ref) else None, (self.args, dict(self.kwargs)))
        return iter(found)


@dataclass
class Recording:
    """What a pass did."""

    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Of each value, for one client."""
    dtypes: list[torch.dtype] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    """`params/…`, `rest/…`, `held/…`, `batch/…` -> value."""
    constants: dict[int, Tensor] = field(default_factory=dict)
    """Values that no input has a part in."""
    losses: int = -1
    buffers: dict[str, int] = field(default_factory=dict)
    """Refreshed buffers that are not what they were."""

    def same(self, other: Recording) -> bool:
        """Whether another pass did the same."""
        return (
            (self.calls, self.shapes, self.dtypes, self.losses, self.buffers)
            == (other.calls, other.shapes, other.dtypes, other.losses, other.buffers)
            and self.constants.keys() == other.constants.keys()
            and all(torch.equal(t, other.constants[slot]) for slot, t in self.constants.items())
        )


def record(objective: Objective, params: State, rest: State, batch: Batch) -> Recording:
    """Watch one client's pass, twice; CannotReplay if it does what no plan can repeat."""
    first, second = (_recorded(objective, params, rest, batch) for _ in range(2))
    if not first.same(second):
        raise CannotReplay("its pass depends on more than its state and its batch: a second one was another")
    return first


def _recorded(objective: Objective, params: State, rest: State, batch: Batch) -> Recording:
    watch = _Recorder()
    trees = {"params": params, "rest": rest, "held": objective.held, "batch": batch}
    own = {kind: {k: v.detach().clone() for k, v in tree.items()} for kind, tree in trees.items()}
    for kind, tree in own.items():
        for name, tensor in tree.items():
            watch.log.inputs[f"{kind}/{name}"] = watch.value(tensor)
    with torch.enable_grad(), watch:  # nothing here wants a gradient, but who switches them off shows
        losses, seen = objective.losses({**own["held"], **own["rest"], **own["params"]}, own["batch"])
    if id(losses) not in watch.slots or losses.dim() != 1:
        raise CannotReplay("its losses depend on nothing that is known")
    watch.log.losses = watch.slots[id(losses)]
    for name, tensor in seen.items():
        if name in rest and tensor is not own["rest"][name]:
            watch.log.buffers[name] = watch.slots.get(id(tensor), -1)
    if -1 in watch.log.buffers.values():
        raise CannotReplay("it refreshes a buffer in a way that is not known")
    return watch.log


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.log = Recording()
        self.slots: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no two tensors have one id

    def value(self, tensor: Tensor) -> int:
        slot = self.slots[id(tensor)] = len(self.log.shapes)
        self.kept.append(tensor)
        self.log.shapes.append(tuple(tensor.shape))
        self.log.dtypes.append(tensor.dtype)
        return slot

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA or func in _CONSTANTS:
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and func in _CONSTANTS:
                self.log.constants[self.value(out)] = out
            return out
        name = getattr(func, "__name__", str(func))
        seen = [False]

        def taken(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if is_mapped(leaf):
                raise HiddenTensor(
                    "A model or its losses hold a client's tensor, which a rule for the whole cohort cannot see.",
                    hint="Put it into `Objective.held`, with `fix(objective, {name: tensor})`, and read it from the state.",
                )
            if id(leaf) not in self.slots:  # made before the pass, or by a function that takes no tensor
                self.log.constants[self.value(leaf)] = leaf
            seen[0] = True
            return Ref(self.slots[id(leaf)])

        if not torch.is_grad_enabled():  # so is the forward pass of an autograd.Function
            raise CannotReplay(f"{name} is called where gradients are off, or in a function with a backward pass of its own")
        if func is Tensor.view and any(isinstance(a, torch.dtype) for a in args):
            raise CannotReplay("a view as another type")
        taken_args, taken_kwargs = tree_map(taken, (args, kwargs))
        before = {id(t): _version(t) for t in _tensors(args, kwargs)}
        out = func(*args, **kwargs)
        counted = func is Tensor.add_ and not args[0].is_floating_point()  # a counter, as BatchNorm's: it has a new value now
        if not counted and any(_version(t) != before[id(t)] for t in _tensors(args, kwargs)):
            raise CannotReplay(f"{name} changes a tensor in place")
        if not isinstance(out, Tensor):
            if not seen[0]:
                return out
            raise CannotReplay(f"{name} takes a value out of a tensor, or gives several tensors")
        if id(out) in self.slots and not counted:  # the very tensor that came in
            return out
        call = Call(func=Tensor.add if counted else func, args=taken_args, kwargs=taken_kwargs, out=self.value(out))
        if all(slot in self.log.constants for slot in call.inputs()):
            self.log.constants[call.out] = out
        else:
            self.log.calls.append(call)
        return out


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for each in (*args, *kwargs.values()):
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (tuple, list)):
            yield from (e for e in each if isinstance(e, Tensor))


def _version(t: Tensor) -> int:
    return t._version  # how often it was changed in place


def _getter(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(Tensor, name).__get__
    return found


_METADATA = frozenset(
    (
        Tensor.dim,
        Tensor.size,
        Tensor.numel,
        Tensor.__len__,
        Tensor.is_floating_point,
        Tensor.is_contiguous,
        *map(_getter, ("shape", "ndim", "dtype", "device", "requires_grad", "is_leaf", "grad_fn", "is_nested", "layout")),
    )
)
_CONSTANTS = frozenset((Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, torch.zeros_like, torch.ones_like, torch.full_like))
