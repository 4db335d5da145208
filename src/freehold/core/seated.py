"""A module run with the tensors of a state in place of its own: `torch.func.functional_call`, without its cost per call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Places = list[tuple[dict[str, Any], str]]


class Seated:
    """A module whose tensors can be exchanged for a call. Where they sit is looked up once: its parts must not change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._modules = list(module.modules())
        self._places = _places(module)

    def mode(self, training: bool) -> None:
        """Put the whole module into training mode, or into that of evaluation."""
        if any(part.training is not training for part in self._modules):
            self.module.train(training)

    def __call__(self, state: dict[str, Tensor], x: Tensor) -> Any:
        """The module's outputs with `state`; a buffer that it replaces is replaced in `state` too.

        Names as `named_parameters` and `named_buffers` say them, a tied tensor once. What `state` lacks is the module's own.
        """
        if not self._places.keys() >= state.keys():
            return functional_call(self.module, state, (x,))
        own: list[tuple[str, dict[str, Any], str, Any]] = []
        try:
            for name, tensor in state.items():
                for where, key in self._places[name]:
                    own.append((name, where, key, where[key]))
                    where[key] = tensor
            return self.module(x)
        finally:
            for name, where, key, before in own:
                state[name] = where[key]
                where[key] = before


def _places(module: nn.Module) -> dict[str, Places]:
    """Where the tensors of each name sit: of tied ones in several places, under the first of their names."""
    first: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        first.setdefault(id(tensor), name)
    found: dict[str, Places] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    found.setdefault(first[id(tensor)], []).append((tensors, key))
    return found
