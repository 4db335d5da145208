"""The ceiling: FedAvg written out by hand for one model at a time, whole chunks of clients in each operation.

W1a: parameters stacked, explicit gradients, SGD fused into `baddbmm_`. W1b: the first layer is never built; it is the shared
weight plus what each row of the client's data added, seen through the Gram matrix. W4: only the items that a client touches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.simulation.contender import timed
from benchmarks.simulation.works import Ready
from freehold.drawing import digest_seed


class Cohort(NamedTuple):
    """A chunk of C clients of N rows at most, the largest first, and their S steps of B rows at most in a round."""

    sizes: Tensor
    """[C]."""
    rows: Tensor
    """[C, N], of the table; padded with a client's first."""
    at: Tensor
    """[C, S, B], into `rows`."""
    part: Tensor
    """[C, S, B]: 1 / the real rows of the step; 0 for padding."""
    active: Sequence[int]
    """[S]: how many of the clients, from the first on, still train."""


@lru_cache(maxsize=4096)
def slots(size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Where in an order each step reads, and with what part: as `tensor_split` deals."""
    parts = torch.arange(size).tensor_split(-(-size // batch))
    width = len(parts[0])
    at, part = torch.zeros(len(parts), width, dtype=torch.int64), torch.zeros(len(parts), width)
    for s, own in enumerate(parts):
        at[s, : len(own)], part[s, : len(own)] = own, 1 / len(own)
    return at, part


class ByHand(ABC):
    """FedAvg of one model."""

    chunk: int

    def __init__(self, made: Ready) -> None:
        """Clients are sorted once."""
        self.made, self.init, self.lr = made, made.task.init, made.workload.lr
        clients = sorted(made.clients, key=made.feed.size, reverse=True)
        self.chunks = [clients[i : i + self.chunk] for i in range(0, len(clients), self.chunk)]
        self.mean: dict[str, Tensor] = {}

    def round(self, index: int) -> float:
        """One round of all clients."""
        return timed(self.made.device, lambda: self._round(index))

    def outcome(self) -> Mapping[str, Tensor]:
        """Of the last round."""
        return self.mean

    def close(self) -> None:
        """Free what was drawn."""
        self.mean = {}

    @torch.no_grad()
    def _round(self, index: int) -> None:
        total = {k: torch.zeros_like(v) for k, v in self.init.items()}
        for clients in self.chunks:
            self.add(total, self.drawn(clients, index))
        self.mean = {k: t / len(self.made.feed.y) for k, t in total.items()}

    def drawn(self, clients: Sequence[str], index: int) -> Cohort:
        """A chunk's steps."""
        feed, epochs, batch = self.made.feed, self.made.workload.epochs, self.made.workload.batch
        sizes = [feed.size(c) for c in clients]
        counts = [epochs * -(-n // batch) for n in sizes]
        widest = max(slots(n, batch)[0].shape[1] for n in sizes)
        rows = torch.stack([feed.rows[c]["train"][:1].expand(sizes[0]) for c in clients])
        at = torch.zeros(len(clients), counts[0], widest, dtype=torch.int64)
        part = torch.zeros(len(clients), counts[0], widest)
        for i, (client, size) in enumerate(zip(clients, sizes, strict=True)):
            rows[i, :size] = feed.rows[client]["train"]
            where, share = slots(size, batch)
            steps, width = where.shape
            for epoch in range(epochs):
                seed = digest_seed("order", feed.seed, client, index * epochs + epoch)
                order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
                at[i, epoch * steps : (epoch + 1) * steps, :width] = order[where]
                part[i, epoch * steps : (epoch + 1) * steps, :width] = share
        active = [sum(count > s for count in counts) for s in range(counts[0])]
        return Cohort(torch.tensor(sizes), rows, at, part, active)

    @abstractmethod
    def add(self, total: Mapping[str, Tensor], cohort: Cohort) -> None:
        """Train the chunk, and add its weighted updates to `total`, in place."""

    def error(self, logits: Tensor, y: Tensor, part: Tensor) -> Tensor:
        """The gradient of the mean cross-entropy by the logits [C, B, K]; `logits` is overwritten."""
        g = logits.softmax(-1)
        g.scatter_add_(2, y[..., None], g.new_full((1,), -1.0).expand(*y.shape, 1))
        return g.mul_(part[..., None])


class Logistic(ByHand):
    """W1a: [C, 10, 784]."""

    chunk = 16

    def add(self, total: Mapping[str, Tensor], cohort: Cohort) -> None:
        """Stacked."""
        x, y = self.made.feed.x, self.made.feed.y
        weight, bias = (self.init[k].expand(len(cohort.sizes), *self.init[k].shape).contiguous() for k in ("weight", "bias"))
        picks = cohort.rows.gather(1, cohort.at.flatten(1)).view_as(cohort.at)
        for s, n in enumerate(cohort.active):
            at = picks[:n, s]
            seen = x.index_select(0, at.flatten()).view(n, at.shape[1], -1)
            g = self.error(torch.baddbmm(bias[:n, None], seen, weight[:n].mT), y[at], cohort.part[:n, s])
            weight[:n].baddbmm_(g.mT, seen, alpha=-self.lr)
            bias[:n].sub_(g.sum(1), alpha=self.lr)
        add_moved(total, cohort, {"weight": weight, "bias": bias}, self.init)


class Dense(ByHand):
    """W1b: the first layer as what each row added to it [C, N, 200], the second stacked."""

    chunk = 16

    def add(self, total: Mapping[str, Tensor], cohort: Cohort) -> None:
        """Low-rank."""
        lr, y = self.lr, self.made.feed.y
        seen = self.made.feed.x[cohort.rows]  # [C, N, 784]
        clients, rows, _ = seen.shape
        first = torch.addmm(self.init["0.bias"], seen.flatten(0, 1), self.init["0.weight"].T).view(clients, rows, -1)
        gram = torch.bmm(seen, seen.mT)
        added = torch.zeros_like(first)
        shift = first.new_zeros(clients, 1, first.shape[2])
        weight, bias = (self.init[k].expand(clients, *self.init[k].shape).contiguous() for k in ("2.weight", "2.bias"))
        labels = y[cohort.rows]
        index = torch.arange(clients)[:, None]
        for s, n in enumerate(cohort.active):
            at, who = cohort.at[:n, s], index[:n]
            hidden = torch.baddbmm(first[who, at].add_(shift[:n]), gram[who, at], added[:n]).relu_()
            g = self.error(torch.baddbmm(bias[:n, None], hidden, weight[:n].mT), labels[who, at], cohort.part[:n, s])
            below = torch.bmm(g, weight[:n]).mul_(hidden > 0)
            weight[:n].baddbmm_(g.mT, hidden, alpha=-lr)
            bias[:n].sub_(g.sum(1), alpha=lr)
            shift[:n].sub_(below.sum(1, keepdim=True), alpha=lr)
            flat = at + rows * who
            added.view(clients * rows, -1).index_add_(0, flat.flatten(), below.flatten(0, 1), alpha=-lr)
        weights = cohort.sizes.to(added.dtype)
        total["0.weight"].addmm_((added * weights[:, None, None]).flatten(0, 1).T, seen.flatten(0, 1))
        total["0.bias"].add_(weights @ shift[:, 0])
        add_moved(total, cohort, {"2.weight": weight, "2.bias": bias}, self.init)


class Items(ByHand):
    """W4: of each client the items that are in its data [C, N, 32], duplicates as one."""

    chunk = 32

    def add(self, total: Mapping[str, Tensor], cohort: Cohort) -> None:
        """Touched rows only."""
        lr, init = self.lr, self.init["items.weight"]
        item, rating = self.made.feed.x[cohort.rows], self.made.feed.y[cohort.rows]  # [C, N]
        clients, rows = item.shape
        index = torch.arange(clients)[:, None]
        ordered, order = item.sort(1)  # the first place of each item stands for all of its places
        begins = torch.ones_like(ordered, dtype=torch.bool)
        begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        leader = order.gather(1, begins.long().mul_(torch.arange(rows)).cummax(1).values)
        place = torch.empty_like(order).scatter_(1, order, leader)  # [C, N]
        table = init[item]
        user, bias = (self.init[k].expand(clients, *self.init[k].shape).contiguous() for k in ("user.weight", "user.bias"))
        flat_table = table.view(clients * rows, -1)
        for s, n in enumerate(cohort.active):
            at, who = cohort.at[:n, s], index[:n]
            where = (place[who, at] + rows * who).flatten()
            seen = flat_table[where].view(n, at.shape[1], -1)
            off = torch.baddbmm(bias[:n, None], seen, user[:n].mT)[..., 0].sub_(rating[who, at]).mul_(2 * cohort.part[:n, s])
            step = (off[..., None] * user[:n]).flatten(0, 1)
            user[:n].baddbmm_(off[:, None], seen, alpha=-lr)
            bias[:n].sub_(off.sum(1, keepdim=True), alpha=lr)
            flat_table.index_add_(0, where, step, alpha=-lr)
        own = torch.zeros_like(place, dtype=torch.bool).scatter_(1, leader, True)
        moved = (table - init[item]) * (own * cohort.sizes[:, None])[..., None]
        total["items.weight"].index_add_(0, item.flatten(), moved.flatten(0, 1))
        add_moved(total, cohort, {"user.weight": user, "user.bias": bias}, self.init)


def add_moved(total: Mapping[str, Tensor], cohort: Cohort, stacked: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> None:
    """Add what stacked parameters [C, ...] moved, weighted by sizes."""
    weights = cohort.sizes.to(torch.float32)
    for name, tensor in stacked.items():
        total[name].add_((weights @ tensor.flatten(1)).view_as(init[name])).sub_(init[name] * weights.sum())


HANDS: Mapping[str, Callable[[Ready], ByHand]] = {"logistic": Logistic, "mlp": Dense, "ratings": Items}
"""By network."""


def by_hand(made: Ready) -> ByHand | None:
    """The hand-written code of a workload; None where there is none."""
    if made.workload.algorithm != "fedavg" or made.workload.noise is not None or made.device.type != "cpu":
        return None
    kind = HANDS.get(made.workload.network)
    return None if kind is None else kind(made)
