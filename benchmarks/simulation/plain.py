"""A good plain loop: one client after the other, foreach SGD on the module's own parameters, autograd.grad, no DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.simulation.contender import SHOWN, timed
from benchmarks.simulation.networks import LOSSES
from benchmarks.simulation.works import LAM, MAX_NORM, Ready, module_of

State = Mapping[str, Tensor]


class Plain:
    """FedAvg, Ditto, FedRep and DP-SGD as somebody would write them who writes for speed, but for one client at a time."""

    def __init__(self, made: Ready) -> None:
        """The module's parameters are those of whoever trains at the moment."""
        self.made, self.init = made, {k: v.clone() for k, v in made.task.init.items()}
        self.module = module_of(made.workload, self.init)
        self.params = dict(self.module.named_parameters())
        self.head = [k for k in self.params if made.task.head(k)]
        self.body = [k for k in self.params if k not in self.head]
        self.loss = LOSSES[made.workload.target][1]
        self.personal: dict[str, State] = {}
        self.mean: dict[str, Tensor] = {}

    def round(self, index: int) -> float:
        """One round of all clients."""
        return timed(self.made.device, lambda: self._round(index))

    def outcome(self) -> Mapping[str, Tensor]:
        """Of the last round."""
        seen = {f"personal/{c}/{k}": v for c in list(self.personal)[:SHOWN] for k, v in self.personal[c].items()}
        return {**self.mean, **seen}

    def close(self) -> None:
        """Nothing is held."""

    def _round(self, index: int) -> None:
        kind = self.made.workload.algorithm
        sent = self.body if kind == "fedrep" else list(self.params)
        total: list[Tensor] = [torch.zeros_like(self.init[k]) for k in sent]
        for client in self.made.clients:
            batches = [(self.made.feed.x[at], self.made.feed.y[at]) for at in self.made.drawn(client, index)]
            self._load(self.init)
            if kind == "fedrep":
                self._load(self.personal.get(client, {k: self.init[k] for k in self.head}))
                self._descend(self.head, batches)
                self._descend(self.body, batches)
                self.personal[client] = self._kept(self.head)
            else:
                self._descend(sent, batches)
            with torch.no_grad():
                moved = torch._foreach_sub([self.params[k] for k in sent], [self.init[k] for k in sent])
                torch._foreach_add_(total, moved, alpha=self.made.feed.size(client))
            if kind == "ditto":
                self._load(self.personal.get(client, self.init))
                self._descend(sent, batches, anchor=[self.init[k] for k in sent])
                self.personal[client] = self._kept(sent)
        weight = len(self.made.feed.y)
        self.mean = {k: t / weight for k, t in zip(sent, total, strict=True)}

    @torch.no_grad()
    def _load(self, state: State) -> None:
        torch._foreach_copy_([self.params[k] for k in state], list(state.values()))

    def _kept(self, names: Sequence[str]) -> State:
        return {k: self.params[k].detach().clone() for k in names}

    def _descend(
        self, names: Sequence[str], batches: Sequence[tuple[Tensor, Tensor]], anchor: Sequence[Tensor] | None = None
    ) -> None:
        trained = [self.params[k] for k in names]
        lr = self.made.workload.lr
        gradients = self._plain if self.made.workload.noise is None else self._private
        for k, p in self.params.items():
            p.requires_grad_(k in names)
        for x, y in batches:
            found = gradients(trained, x, y)
            with torch.no_grad():
                if anchor is not None:
                    torch._foreach_lerp_(trained, anchor, lr * LAM)
                torch._foreach_add_(trained, found, alpha=-lr)

    def _plain(self, trained: Sequence[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(self.loss(self.module(x), y), trained)

    def _private(self, trained: Sequence[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
        each: Callable[..., dict[str, Tensor]] = vmap(grad(self._loss_of_one), in_dims=(None, 0, 0))
        found = list(each({k: p.detach() for k, p in self.params.items()}, x, y).values())
        norms = torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt()
        factor = (MAX_NORM / norms.clamp(min=1e-12)).clamp(max=1)
        summed = [torch.einsum("b,b...->...", factor, g) for g in found]
        if noise := self.made.workload.noise:
            torch._foreach_add_(summed, [torch.randn_like(g) for g in summed], alpha=MAX_NORM * noise)
        torch._foreach_div_(summed, self.made.workload.batch)
        return summed

    def _loss_of_one(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss(functional_call(self.module, dict(params), (x[None],)), y[None])
