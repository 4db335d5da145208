"""`custom_vmap`: a pure function of trees that brings its own rule for `torch.func.vmap`.

    @custom_vmap
    def f(a, b): ...                    # the definition: one client

    @f.def_vmap
    def _(size, a, b): ...              # the same for `size` of them: each tensor has a leading axis

What `jax.custom_batching.custom_vmap` is for JAX. Without a rule, outside of a vmap, under several, or if something is to be
differentiated through it, `f` is its definition, so transforms may be nested around it at will. The rule sees every tensor
stacked (one that is not mapped is expanded, stride 0). An argument that it returns as it came is the caller's very object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

P = ParamSpec("P")
R = TypeVar("R")


class custom_vmap(Generic[P, R]):
    """Decorate a definition; `def_vmap` gives it a rule for a whole cohort."""

    def __init__(self, fn: Callable[P, R]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.one: Callable[P, R | None] | None = None
        self.differentiable = False
        self._rule: Callable[..., R] | None = None
        self._followed: ContextVar[Callable[..., R] | None] = ContextVar(f"rule of {getattr(fn, '__name__', 'a function')}")

    @property
    def rule(self) -> Callable[..., R] | None:
        """The rule in force: that of the innermost `following`, or the one that was set."""
        return self._followed.get(self._rule)

    def def_vmap(self, rule: Callable[..., R] | None, *, differentiable: bool = False) -> Callable[..., R] | None:
        """Set the rule, called as `rule(size, *args, **kwargs)`; None takes it away.

        `differentiable`: autograd may look on from outside of the vmap while the rule runs; it is made of differentiable steps.
        """
        self._rule, self.differentiable = rule, differentiable
        return rule

    def def_one(self, rule: Callable[P, R | None]) -> Callable[P, R | None]:
        """Set a faster way for one client; it returns None where it does not apply."""
        self.one = rule
        return rule

    @contextmanager
    def following(self, rule: Callable[..., R] | None) -> Iterator[None]:
        """Within it, in this thread or task, `rule` is in force; None: the definition."""
        token = self._followed.set(rule)
        try:
            yield
        finally:
            self._followed.reset(token)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The rule under exactly one `vmap`, what `def_one` set where it applies, the definition anywhere else."""
        if self.one is not None and (found := self.one(*args, **kwargs)) is not None:
            return found
        rule = self.rule
        if rule is None or not _in_one_vmap():
            return self.fn(*args, **kwargs)
        # An iterator would give its tensors away one level too late: as one client's, inside of the rule for all.
        args_ = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        flat, spec = tree_flatten((args_, kwargs))
        call = _Call(self.fn, rule, flat, spec, self.differentiable)
        out = _Primitive.apply(call, *(x for x in flat if isinstance(x, Tensor)))  # type: ignore[no-untyped-call]
        result: R = tree_unflatten(out, call.out_spec)
        return result


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is one client's view of a whole cohort's, as seen inside of a vmap."""
    # functorch has no public way to ask.
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def _in_one_vmap() -> bool:
    # functorch has no public way to ask which transforms are active.
    active = torch._C._functorch.get_interpreter_stack() or ()
    return len(active) == 1 and active[0].key() == torch._C._functorch.TransformType.Vmap


class _Call:
    """One call, as a function of its tensors only."""

    def __init__(
        self, fn: Callable[..., Any], rule: Callable[..., Any], flat: Sequence[Any], spec: Any, differentiable: bool
    ) -> None:
        self.fn, self.rule, self.spec, self.differentiable = fn, rule, spec, differentiable
        self.still = [None if isinstance(x, Tensor) else x for x in flat]
        self.slots = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]
        self.out_spec: Any = None

    def __call__(self, tensors: Sequence[Tensor], size: int | None = None) -> tuple[Tensor, ...]:
        flat = list(self.still)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            flat[slot] = tensor
        args, kwargs = tree_unflatten(flat, self.spec)
        out = self.fn(*args, **kwargs) if size is None else self.rule(size, *args, **kwargs)
        leaves, self.out_spec = tree_flatten(out)
        return tuple(leaves)


class _Primitive(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: _Call, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        stacked = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) if dim else t
            for t, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        # autograd looks on: only the definition can be differentiated
        if not call.differentiable and any(t.requires_grad for t in tensors):
            out = torch.func.vmap(lambda *ts: call(ts), randomness=info.randomness)(*stacked)
        else:
            out = call(stacked, size)
        return tuple(out), (0,) * len(out)
