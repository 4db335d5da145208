"""DP-SGD for a cohort: each example is a client of its own for one pass, and its gradient is clipped by the norm of its pairs.

Ghost norms: with X [T, in] and G [T, out] of one example, the gradient of a Linear's weight is `G.T @ X`, and its squared norm is
the sum of `(X X.T) * (G G.T)`, so no gradient of an example is ever built for it (Goodfellow 2015, arXiv:1510.01799; Li et al.
2022, arXiv:2110.05679). Since the pair is kept, one backward pass is enough: the clipped sum is `(w G).T @ X`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from freehold.core.cohort.tape import Grads, OtherUse, Pair, Pass, Tape, linear
from freehold.core.objective import Objective, Privacy, no_gradient_per_example
from freehold.core.seeding import fold, normal
from freehold.core.steps import Batch
from freehold.core.trees import State

_TAPE = Tape()


class Clipping:
    """Clipped and noised gradients of one objective, for the passes of one `descend`."""

    def __init__(self, objective: Objective, privacy: Privacy) -> None:
        self.losses = replace(objective, private=None)
        self.privacy = privacy
        self.built: set[str] = set()
        """Weights that are used otherwise than by a Linear: their gradients are built for each example."""

    def gradients(self, params: State, rest: State, held: State, batch: Batch, pace: float | Tensor) -> Grads:
        """`pace` [n] times the sum of clipped gradients over the expected batch, by `params` [n, ...]; without noise."""
        clients, size = batch["real"].shape
        found = self._each(params, rest, held, batch)
        sums = _by_name(found, clients, size)
        norms = torch.stack([one.squared_norms() for one in sums.values()]).sum(0).sqrt() if sums else None
        over = pace / self.privacy.expected_batch
        over = over.unsqueeze(1) if isinstance(over, Tensor) else over
        pairs: list[Pair] = []
        out: dict[str, Tensor] = {}
        if norms is not None:
            # An example whose gradient is not finite counts nothing: NaN passes through any clip and would carry it out.
            counts = batch["real"] & norms.isfinite()
            weights = torch.where(counts, (self.privacy.max_norm / norms.clamp(min=1e-12)).clamp(max=1) * over, 0)
            for name, one in sums.items():
                pair, whole = one.weighted(name, weights)
                pairs += [] if pair is None else [pair]
                out |= {} if whole is None else {name: whole.view(clients, *params[name].shape[1:])}
        return Grads(pairs, out, {})

    def add_noise(self, to: State, batch: Batch, pace: float | Tensor) -> None:
        """Add `pace` [n] times the noise of a step, over the expected batch, to `to` [n, ...] in place."""
        privacy = self.privacy
        if not privacy.noise_multiplier:
            return
        spread = pace * (privacy.max_norm * privacy.noise_multiplier / privacy.expected_batch)
        for client, key in enumerate(fold(batch["key"], -1).unbind(0)):  # one after the other: it stays in the cache
            for place, value in enumerate(to.values()):
                noise = normal(fold(key, place), value.shape[1:], dtype=value.dtype)
                if isinstance(spread, Tensor):
                    value[client].addcmul_(noise, spread[client].to(value.dtype))
                else:
                    value[client].add_(noise, alpha=spread)

    def _each(self, params: State, rest: State, held: State, batch: Batch) -> Grads:
        """A pass with an example in the place of a client: gradients [n * B, ...]."""
        clients, size = batch["real"].shape

        def spread(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.unsqueeze(1).expand(clients, size, *v.shape[1:]).flatten(0, 1) for k, v in tree.items()}

        def product(name: str, x: Tensor, raw: bool) -> Tensor:
            wide = x.reshape(clients, -1, x.shape[-1])
            return linear(wide, params[name], None).view(*x.shape[:-1], -1)

        alone = {k: v.flatten(0, 1).unsqueeze(1) for k, v in batch.items() if k not in ("real", "live", "key")}
        ones = torch.ones(clients * size, 1, dtype=torch.bool, device=batch["real"].device)
        keys = fold(batch["key"].unsqueeze(1), torch.arange(size, device=ones.device)).flatten()
        alone |= {"real": ones, "live": ones[:, 0], "key": keys, "alone": ones[:, 0]}
        seeds = batch["real"].reshape(-1, 1).to(next((v.dtype for v in params.values()), torch.float32))
        objective = replace(self.losses, held=spread(held), pulls=(), tilt={})
        while True:
            # A matrix that only a Linear reads is not copied for each example: a stand-in of its shape says which one is meant.
            standing = {k: v for k, v in params.items() if v.dim() == 3 and k not in self.built}
            full = spread({k: v for k, v in params.items() if k not in standing})
            hollow = {k: v.new_zeros(()).expand(clients * size, *v.shape[1:]) for k, v in standing.items()}
            both = {k: hollow[k] if k in hollow else full[k] for k in params}
            wanted = Pass(objective, both, spread(rest), alone, seeds, product, frozenset(standing))
            try:
                return _TAPE.run(wanted)
            except OtherUse as found:
                self.built.add(found.name)
            except RuntimeError as error:
                raise no_gradient_per_example(error) from error


class _OfExamples:
    """The gradients of one parameter by n * B examples: as X [n * B, T, in] and G [n * B, T, out], or built."""

    def __init__(self, clients: int, size: int, pairs: Sequence[Pair], built: Tensor | None) -> None:
        self.clients, self.size = clients, size
        self.built: Tensor | None = built
        if pairs:
            self.x, self.g = torch.cat([p.x for p in pairs], 1), torch.cat([p.g for p in pairs], 1)
            # Where a Gram matrix would be larger than the gradient itself, or a part is built already, all of it is.
            if built is not None or self.x.shape[1] ** 2 > self.x.shape[2] * self.g.shape[2]:
                product = torch.bmm(self.g.mT, self.x)
                self.built = product if built is None else built + product

    def squared_norms(self) -> Tensor:
        """[n, B]."""
        if self.built is not None:
            return self.built.flatten(1).square().sum(1).view(self.clients, self.size)
        x, g = self.x, self.g
        if x.shape[1] == 1:
            squared = x.square().sum((1, 2)) * g.square().sum((1, 2))
        else:
            squared = (torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).sum((1, 2)).clamp(min=0)
        return squared.view(self.clients, self.size)

    def weighted(self, name: str, weights: Tensor) -> tuple[Pair | None, Tensor | None]:
        """The sum over each client's examples, each times its weight [n, B]: as a pair [n, B * T, ...], or built [n, -1]."""
        counted = weights > 0
        if self.built is not None:
            each = self.built.reshape(self.clients, self.size, -1)
            return None, torch.einsum("nb,nbp->np", weights.to(each.dtype), torch.where(counted[..., None], each, 0))
        by, on = weights.to(self.g.dtype).reshape(-1, 1, 1), counted.reshape(-1, 1, 1)
        x, g = torch.where(on, self.x, 0), torch.where(on, self.g, 0) * by
        return Pair(name, x.reshape(self.clients, -1, x.shape[-1]), g.reshape(self.clients, -1, g.shape[-1])), None


def _by_name(found: Grads, clients: int, size: int) -> dict[str, _OfExamples]:
    """The gradients of a pass, parameter by parameter."""
    names = dict.fromkeys((*found.rest, *(pair.name for pair in found.pairs)))
    return {k: _OfExamples(clients, size, [p for p in found.pairs if p.name == k], found.rest.get(k)) for k in names}
