"""A module run with the tensors of a state in place of its own: `torch.func.functional_call`, without its cost per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Places = list[tuple[dict[str, Any], str]]


class Seated:
    """A module whose tensors can be exchanged for a call. Where they sit is looked up once: its parts must not change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._places = _places(module)

    def knows(self, state: Mapping[str, Tensor]) -> bool:
        """Whether all names of a state are the module's."""
        return self._places.keys() >= state.keys()

    def mode(self, training: bool) -> None:
        """Put the whole module into training mode, or into that of evaluation."""
        if any(part.training is not training for part in self._modules):
            self.module.train(training)

    def __call__(self, state: dict[str, Tensor], x: Tensor) -> Any:
        """The module's outputs with `state`; a buffer that it replaces is replaced in `state` too.

        Names as `named_parameters` and `named_buffers` say them, a tied tensor once. What `state` lacks is the module's own.
        """
        if not self.knows(state):
            return functional_call(self.module, state, (x,))
        with self.holding(state):
            return self.module(x)

    @contextmanager
    def holding(self, state: dict[str, Tensor]) -> Iterator[None]:
        """The module has `state` in place of its own tensors; KeyError for a name that it doesn't know."""
        own: list[tuple[str, dict[str, Any], str, Any]] = []
        try:
            for name, tensor in state.items():
                for where, key in self._places[name]:
                    own.append((name, where, key, where[key]))
                    where[key] = tensor
            yield
        finally:
            for name, where, key, before in own:
                state[name] = where[key]
                where[key] = before


class ModuleLosses:
    """The losses of a module, pure: (state, batch) -> (loss of each example [B], refreshed buffers).

    A module that was seen to do without the rules of `Forward` is quiet: `settled` runs it bare.
    """

    def __init__(
        self, run: Callable[..., Any], criterion: Callable[[Tensor, Tensor], Tensor], seated: Seated, watch: Watch
    ) -> None:
        self._run, self._criterion, self._seated, self._watch = run, criterion, seated, watch
        self._passes, self._loud = 0, False

    def __call__(self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As `Objective.losses`."""
        seen = self._run(state, batch, training=True)
        self._passes += 1
        self._loud = self._loud or self._watch.touched
        return self._criterion(seen.outputs, batch["y"]), seen.buffers

    def quiet(self, state: Mapping[str, Tensor]) -> bool:
        """Whether `settled` may be used on a state."""
        return self._passes > 0 and not self._loud and self._seated.knows(state)

    @contextmanager
    def settled(self, state: dict[str, Tensor]) -> Iterator[Callable[[Mapping[str, Tensor]], Tensor]]:
        """The losses as a function of a batch alone, for many of them: nothing is exchanged between two.
        Buffers change in `state`.

        Raises Noisy at the end if random numbers were drawn after all: what was computed must not be used. The generator is then
        as it was before, and the module is quiet no more.
        """
        before = torch.get_rng_state()
        self._seated.mode(True)
        self._watch.bend = None
        module, criterion = self._seated.module, self._criterion
        with self._seated.holding(state):
            yield lambda batch: criterion(module(batch["x"]), batch["y"])
        self._watch.features = None
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            self._loud = True
            raise Noisy


class Noisy(Exception):
    """A module that was quiet drew random numbers of its own."""


class Watch:
    """Stands before the head: shows its input, and bends it if asked. (A hook would do, at many times the cost.)"""

    bend: Callable[[Tensor], Tensor] | None = None
    features: Tensor | None = None
    touched = False
    """Whether the last pass in training mode needed the rules of `Forward`."""

    def __init__(self, top: nn.Module) -> None:
        self.inner = top.forward
        object.__setattr__(top, "forward", self)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the head."""
        self.features = x
        return self.inner(x if self.bend is None else self.bend(x), *args, **kwargs)


def _places(module: nn.Module) -> dict[str, Places]:
    """Where the tensors of each name sit: of tied ones in several places, under the first of their names."""
    first: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        first.setdefault(id(tensor), name)
    found: dict[str, Places] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key, held in tensors.items():
                if held is not None:
                    found.setdefault(first[id(held)], []).append((tensors, key))
    return found
