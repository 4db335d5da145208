"""DP-SGD for a cohort: each example is a client of its own for one pass, and its gradient is clipped by the norm of its pairs.

Ghost norms: with X [T, in] and G [T, out] of one example, the gradient of a Linear's weight is `G.T @ X`, and its squared norm is
the sum of `(X X.T) * (G G.T)`, so no gradient of an example is ever built for it (Goodfellow 2015, arXiv:1510.01799; Li et al.
2022, arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683). A convolution is a Linear over its patches, a table one over one-hot
rows. Since pairs are kept, one backward pass is enough: the clipped sum is `(w G).T @ X`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freehold.core.cohort.passes import Grads, Pair, Pass, Scattered
from freehold.core.cohort.replay import run
from freehold.core.cohort.tape import OtherUse, Tape, linear
from freehold.core.objective import Objective, Privacy, no_gradient_per_example
from freehold.core.seeding import fold, normal
from freehold.core.steps import Batch
from freehold.core.trees import State

_TAPE = Tape()
_VAGUE = 1e-2
"""Share of the terms' own size below which a sum of them is computed otherwise."""
_REPLAYED = 1 << 26
"""Most numbers in the gradients of all examples for which a pass is replayed: once, to be sure, they are built."""


class Clipping:
    """Clipped and noised gradients of one objective, for the passes of one `descend`."""

    def __init__(self, objective: Objective, privacy: Privacy) -> None:
        self.losses = replace(objective, private=None, pulls=(), tilt={})
        self.privacy = privacy
        self.built: set[str] = set()
        """Weights that are read in a way that has no pairs: their gradients are built for each example."""

    def gradients(self, wanted: Pass, pace: float | Tensor) -> Grads:
        """`pace` [n] times the sum of clipped gradients over the expected batch; without noise."""
        real, params = wanted.batch["real"], wanted.params
        parts = _by_name(self._each(wanted), params, real)
        if not parts:
            return Grads([], [], {}, {})
        norms = torch.stack([part.squared_norms() for part in parts.values()]).sum(0).sqrt()
        # An example whose gradient is not finite counts nothing: NaN passes through any clip and would carry it out.
        counts = real & norms.isfinite()
        over = pace / self.privacy.expected_batch
        over = over.unsqueeze(1) if isinstance(over, Tensor) else over
        weights = torch.where(counts, (self.privacy.max_norm / norms.clamp(min=1e-12)).clamp(max=1) * over, 0)
        pairs, scattered, rest = [], [], {}
        for name, part in parts.items():
            found = part.weighted_sum(weights)
            if isinstance(found, Pair):
                pairs.append(found)
            elif isinstance(found, Scattered):
                scattered.append(found)
            else:
                rest[name] = found
        return Grads(pairs, scattered, rest, {})

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

    def _each(self, wanted: Pass) -> Grads:
        """A pass with an example in the place of a client: gradients [n * B, ...]."""
        batch, params = wanted.batch, wanted.params
        clients, size = batch["real"].shape

        def spread(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.unsqueeze(1).expand(clients, size, *v.shape[1:]).flatten(0, 1) for k, v in tree.items()}

        alone = {k: v.flatten(0, 1).unsqueeze(1) for k, v in batch.items() if k not in ("real", "live", "key")}
        ones = torch.ones(clients * size, 1, dtype=torch.bool, device=batch["real"].device)
        keys = fold(batch["key"].unsqueeze(1), torch.arange(size, device=ones.device)).flatten()
        alone |= {"real": ones, "live": ones[:, 0], "key": keys, "alone": ones[:, 0]}
        seeds = batch["real"].reshape(-1, 1).to(next((v.dtype for v in params.values()), torch.float32))
        objective = replace(self.losses, held=spread(wanted.objective.held))
        small = clients * size * sum(v[0].numel() for v in params.values()) <= _REPLAYED
        while True:
            # What has pairs is not copied for each example: a stand-in of its shape says which weight is meant.
            standing = {k: _Standing(v, size) for k, v in params.items() if v.dim() > 2 and k not in self.built}
            full = spread({k: v for k, v in params.items() if k not in standing})
            hollow = {k: params[k].new_zeros(()).expand(clients * size, *params[k].shape[1:]) for k in standing}
            both = {k: hollow[k] if k in hollow else full[k] for k in params}
            try:
                each = Pass(objective, both, spread(wanted.rest), alone, seeds, standing)
                return run(each)[0] if small else _TAPE.run(each)
            except OtherUse as found:
                self.built.add(found.name)
            except RuntimeError as error:
                raise no_gradient_per_example(error) from error


class _Standing:
    """A weight of n clients, read by n * B examples."""

    own = False

    def __init__(self, weight: Tensor, size: int) -> None:
        self.weight, self.size = weight, size

    def linear(self, x: Tensor, picks: Tensor | None) -> Tensor:
        """x [n * B, T, in] -> [n * B, T, out]."""
        return linear(x.reshape(len(self.weight), -1, x.shape[-1]), self.weight, None).view(*x.shape[:-1], -1)

    def back(self, g: Tensor) -> Tensor:
        """g [n * B, T, out] -> [n * B, T, in]."""
        return torch.bmm(g.reshape(len(self.weight), -1, g.shape[-1]), self.weight).view(*g.shape[:-1], -1)

    def rows(self, at: Tensor) -> Tensor:
        """at [n * B, T] -> [n * B, T, D]: rows of a table."""
        clients, count, width = self.weight.shape
        at = at.view(clients, -1) + torch.arange(clients, device=at.device)[:, None] * count
        return self.weight.reshape(-1, width).index_select(0, at.flatten()).view(clients * self.size, -1, width)

    def convolution(self, func: Any, x: Tensor, options: Mapping[str, Any]) -> Tensor:
        """x [n * B, in, ...] -> [n * B, out, ...]: all clients in one grouped convolution."""
        clients = len(self.weight)
        wide = x.unflatten(0, (clients, -1)).transpose(0, 1).flatten(1, 2)
        y: Tensor = func(wide, self.weight.flatten(0, 1), None, groups=clients, **options)
        each: Tensor = y.view(y.shape[0], clients, -1, *y.shape[2:]).transpose(0, 1)
        return each.flatten(0, 1)


class _OfExamples:
    """The gradients of one parameter by n * B examples: as X [n * B, T, in] and G [n * B, T, out], or rows, or built."""

    def __init__(
        self, name: str, like: Tensor, size: int, pairs: Sequence[Pair], rows: Sequence[Scattered], built: Tensor | None
    ) -> None:
        self.name, self.shape, self.size = name, like.shape, size
        self.built = None if built is None else built.reshape(len(built), -1)
        self.x: Tensor | None = torch.cat([p.x for p in pairs], 1) if pairs else None
        self.at: Tensor | None = torch.cat([r.at for r in rows], 1) if rows else None
        both = bool(pairs and rows)
        self.g = torch.cat([p.g for p in (pairs or rows)], 1) if pairs or rows else like
        if built is None and not both and like.dim() == 3 and self.g.shape[1] ** 2 <= like[0].numel():
            return
        # Where a Gram matrix would be larger than the gradient itself, or a part is built already, all of it is.
        whole = like.new_zeros(len(like) * size, *(like.shape[1:] if self.at is not None else (like[0].numel(),)))
        if self.x is not None:
            whole = torch.bmm(self.g.mT, self.x)
        for part in rows:
            whole = whole.view(len(whole), *like.shape[1:])
            part.add_to(whole, 1)
        whole = whole.reshape(len(whole), -1)
        self.built = whole if self.built is None else self.built + whole

    def squared_norms(self) -> Tensor:
        """[n, B]."""
        if self.built is not None:
            squared = self.built.square().sum(1)
        elif self.g.shape[1] == 1:
            squared = self.g.square().sum((1, 2)) * (1 if self.x is None else self.x.square().sum((1, 2)))
        elif self.x is not None:
            squared = self._product_norms(self.x)
        else:
            squared = self._row_norms()
        return squared.view(-1, self.size)

    def _product_norms(self, x: Tensor) -> Tensor:
        parts = torch.bmm(x, x.mT) * torch.bmm(self.g, self.g.mT)
        squared = parts.sum((1, 2))
        # Where terms cancel, what is left is rounding: too small a norm would let an example in beyond the clip.
        vague = squared < _VAGUE * parts.abs().sum((1, 2))
        if bool(vague.any()):
            squared[vague] = torch.bmm(self.g[vague].mT, x[vague]).square().sum((1, 2))
        return squared

    def _row_norms(self) -> Tensor:
        """What is added to one row of a table is added up before it is squared."""
        assert self.at is not None
        same = (self.at[:, :, None] == self.at[:, None, :]).to(self.g.dtype)
        return (torch.bmm(same, self.g).square().sum(2) / same.sum(2)).sum(1)

    def weighted_sum(self, weights: Tensor) -> Pair | Scattered | Tensor:
        """The sum over each client's examples, each times its weight [n, B]."""
        clients, on = len(weights), weights > 0
        if self.built is not None:
            each = self.built.view(clients, self.size, -1)
            whole = torch.einsum("nb,nbp->np", weights.to(each.dtype), torch.where(on[..., None], each, 0))
            return whole.view(self.shape)
        by, on = weights.to(self.g.dtype).reshape(-1, 1, 1), on.reshape(-1, 1, 1)
        g = (torch.where(on, self.g, 0) * by).reshape(clients, -1, self.g.shape[-1])
        if self.at is not None:
            return Scattered(self.name, self.at.reshape(clients, -1), g)
        assert self.x is not None
        x = torch.where(on, self.x, 0)
        return Pair(self.name, x.reshape(clients, -1, x.shape[-1]), g)


def _by_name(found: Grads, params: State, real: Tensor) -> dict[str, _OfExamples]:
    """The gradients of a pass, parameter by parameter."""
    names = {*found.rest, *(pair.name for pair in found.pairs), *(part.name for part in found.scattered)}
    return {
        k: _OfExamples(
            k,
            params[k],
            real.shape[1],
            [p for p in found.pairs if p.name == k],
            [s for s in found.scattered if s.name == k],
            found.rest.get(k),
        )
        for k in params
        if k in names
    }
