"""Weights of a cohort that stay factored through its steps."""

from __future__ import annotations

import torch
from torch import Tensor

from freehold.core.cohort.factors import LowRank, Touched
from freehold.core.cohort.passes import Pair, Scattered
from freehold.core.cohort.walk import Walk


class Bank:
    """One layer's weight, `base + coeff.T @ rows`, for a cohort that began at one base.

    Rows pile up step by step. Or they are the clients' own, where the layer is given nothing but these: then their Gram matrix
    is made once, and a step costs no product with the weight's width.
    """

    def __init__(self, base: Tensor, rows: Tensor, own: bool) -> None:
        self.base, self.rows, self.used = base, rows, 0
        self.coeff = rows.new_zeros(*rows.shape[:2], base.shape[1])
        self.gram = torch.bmm(rows, rows.mT) if own else None
        self.first = _common(rows, base) if own else None

    @property
    def own(self) -> bool:
        """Whether its rows are the clients' own."""
        return self.gram is not None

    def linear(self, x: Tensor, picks: Tensor | None) -> Tensor:
        """x [n, N, in] -> [n, N, out], without bias."""
        if self.gram is not None and self.first is not None and picks is not None:
            n = picks.shape[0]
            return torch.baddbmm(_pick(self.first[:n], picks), _pick(self.gram[:n], picks), self.coeff[:n])
        n, y = x.shape[0], _common(x, self.base)
        if not self.used:
            return y
        return torch.baddbmm(y, torch.bmm(x, self.rows[:n, : self.used].mT), self.coeff[:n, : self.used])

    def back(self, g: Tensor) -> Tensor:
        """g [n, N, out] -> [n, N, in]: the gradient of x."""
        n = len(g)
        x = torch.mm(g.reshape(-1, g.shape[2]), self.base[0]).view(n, g.shape[1], -1)
        used = self.used if self.gram is None else self.rows.shape[1]
        if not used:
            return x
        return torch.baddbmm(x, torch.bmm(g, self.coeff[:n, :used].mT), self.rows[:n, :used])

    def push(self, x: Tensor, g: Tensor, picks: Tensor | None) -> None:
        """Subtract `g.T @ x`."""
        n = g.shape[0]
        if self.gram is not None and picks is not None:
            self.coeff[:n].scatter_add_(1, picks[..., None].expand_as(g), -g)
            return
        end = self.used + x.shape[1]
        self.rows[:n, self.used : end] = x
        torch.neg(g, out=self.coeff[:n, self.used : end])
        self.used = end

    def shrink(self, by: float | Tensor, n: int) -> None:
        """Multiply what was added to the base by `1 - by`: a step towards the base."""
        self.coeff[:n].mul_(1 - (by.view(-1, 1, 1) if isinstance(by, Tensor) else by))

    def result(self) -> LowRank:
        """The weight as it is now."""
        if self.gram is None:
            return LowRank(self.rows[:, : self.used], self.coeff[:, : self.used], self.base)
        return LowRank(self.rows, self.coeff, self.base)


class Table:
    """One embedding, `base` with rows added to, for a cohort that began at one base."""

    def __init__(self, base: Tensor, room: int) -> None:
        self.base, self.used = base, 0
        self.at = torch.full((base.shape[0], room), -1, dtype=torch.int64, device=base.device)
        self.more = base.new_zeros(base.shape[0], room, base.shape[2])

    def read(self, rows: Tensor) -> Tensor:
        """Rows [n, N] -> [n, N, D]."""
        n = rows.shape[0]
        now = self.base[0].index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
        if not self.used:
            return now
        again = rows[:, :, None] == self.at[:n, None, : self.used]
        return torch.baddbmm(now, again.to(now.dtype), self.more[:n, : self.used])

    def push(self, part: Scattered) -> None:
        """Subtract a part of the gradient."""
        n, end = part.at.shape[0], self.used + part.at.shape[1]
        self.at[:n, self.used : end] = part.at
        torch.neg(part.g, out=self.more[:n, self.used : end])
        self.used = end

    def shrink(self, by: float | Tensor, n: int) -> None:
        """A step towards the base, as `Bank.shrink`."""
        self.more[:n].mul_(1 - (by.view(-1, 1, 1) if isinstance(by, Tensor) else by))

    def result(self) -> Touched:
        """The table as it is now; what was never written adds zero to row 0."""
        return Touched(self.at[:, : self.used].clamp(min=0), self.more[:, : self.used], self.base, self.base.shape[1])


def opened_table(walk: Walk, base: Tensor, parts: list[Scattered]) -> Table | None:
    """A table whose gradients are these parts in each step, if it has many more rows than will be touched."""
    room = walk.count * sum(p.at.shape[1] for p in parts)
    return Table(base, room) if parts and 4 * room <= base.shape[1] else None


def opened(walk: Walk, base: Tensor, pairs: list[Pair]) -> Bank | None:
    """A bank for a weight that has these pairs in each step, if that is smaller than the weight itself."""
    if len(pairs) == 1 and pairs[0].raw and walk.raw_rows is not None:
        return opened_on_own(walk, base)
    _, out, into = base.shape
    room = walk.count * sum(p.x.shape[1] for p in pairs)
    if not pairs or room * (into + out) >= into * out:
        return None
    # A client that stops early leaves rows that were never written: their coefficients are zero, so the rows must be finite.
    return Bank(base, base.new_zeros(len(base), room, into), own=False)


def opened_on_own(walk: Walk, base: Tensor) -> Bank | None:
    """A bank for a weight that is given the clients' own rows and nothing else, if that is smaller than the weight itself."""
    _, out, into = base.shape
    # With a Gram matrix steps are cheap, so up to twice as many rows pay.
    if walk.raw_rows is None or walk.raw_rows * (into + out) >= 2 * into * out:
        return None
    rows = walk.read_rows()
    # The Gram matrix is of all rows: one that is not finite would reach steps that never read it.
    return Bank(base, rows, own=True) if bool(rows.square().sum().isfinite()) else None


def _common(x: Tensor, w: Tensor) -> Tensor:
    return torch.mm(x.flatten(0, 1), w[0].T).view(*x.shape[:2], -1)


def _pick(t: Tensor, at: Tensor) -> Tensor:
    return t.gather(1, at[..., None].expand(-1, -1, t.shape[2]))
