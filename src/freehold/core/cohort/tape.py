"""One pass through the losses of a whole cohort, forward and backward, with the gradients of Linear layers left factored.

The forward pass is the objective's own code under `vmap`. One operation is looked at more closely: `F.linear` by a learned
weight. Its gradient is never built; it is kept as the pair (input rows X, output gradients G), for the gradient is `G.T @ X`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from freehold.core.batching import custom_vmap
from freehold.core.cohort.passes import Grads, Pair, Pass
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
            total = (torch.where(batch["real"], losses, 0) * wanted.seeds).sum()
        outputs = [y for _, _, y, _ in watch.seen]
        sources = [*outputs, *params.values()]
        found = torch.autograd.grad(total, sources, allow_unused=True) if total.requires_grad else [None] * len(sources)
        pairs = [Pair(k, x, g, raw) for (k, x, _, raw), g in zip(watch.seen, found, strict=False) if g is not None]
        rest = {k: g for k, g in zip(params, found[len(outputs) :], strict=True) if g is not None}
        return Grads(pairs, [], rest, {k: v.detach() for k, v in seen.items()})


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


class _Watch(TorchFunctionMode):
    """While active, each Linear by a learned weight leaves its input and its output, and no gradient of the weight."""

    def __init__(self, wanted: Pass, params: State) -> None:
        super().__init__()
        self.wanted, self.params = wanted, params
        self.names: dict[int, str] = {}
        self.seen: list[tuple[str, Tensor, Tensor, bool]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dim() >= 2:
            x, w, b = _linear_arguments(*args, **kwargs)
            if id(w) in self.names:
                return _linear(self, self.names[id(w)], x, w, b)
        return func(*args, **kwargs)

    def stacked(self, name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """x [C, B, ..., in], w [C, out, in], b [C, out]."""
        shape, input = x.shape, self.wanted.batch["x"]
        raw = x.dim() == 3 and x.shape[:2] == input.shape[:2] and x.data_ptr() == input.data_ptr() and x.numel() == input.numel()
        x = x.flatten(1, -2)
        bank = self.wanted.factored.get(name)
        y = bank.linear(x, self.wanted.picks if raw else None) if bank is not None else None
        y = y if b is None or y is None else y + b.unsqueeze(1)
        y = linear(x, w.detach(), b) if y is None else y
        y = y if y.requires_grad else y.requires_grad_()
        self.seen.append((name, x.detach(), y, raw))
        return y.view(*shape[:-1], y.shape[-1])


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x [C, N, in] by w [C, out, in], plus b [C, out]: one product where all clients have one weight."""
    if w.stride(0) == 0 or len(w) == 1:
        y = torch.mm(x.flatten(0, 1), w[0].T).view(*x.shape[:2], -1)
        return y if b is None else y + b.unsqueeze(1)
    return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


@custom_vmap
def _linear(watch: _Watch, name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.linear(x, w, b)


_linear.def_vmap(lambda size, watch, *args: watch.stacked(*args), differentiable=True)
