"""One client's local steps, by reference to the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

Batch: TypeAlias = Mapping[str, Tensor]
"""One step's examples: `x` [B, ...], `y` [B], `real` [B] (False: padding, counts nothing), `live` [] (False: the whole
step is padding), `key` [] int64 (seeds dropout and noise)."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The local steps of one client in one round, iterable as batches.

    Clients have unequal data: on the vector engine, rows, batches and steps are padded to those of the largest client in
    sight, and the masks say what is real. With `trim` (the loop engine) nothing is padded, and a module may do with a batch
    what it likes.
    """

    table: Mapping[str, Tensor]
    """`x` [T, ...] and `y` [T]: perhaps everybody's, on a simulating machine; never copied per client."""
    rows: Tensor
    """[N] int64: this client's training rows of the table."""
    present: Tensor
    """[N] bool: which of `rows` are not padding."""
    picks: Tensor
    """[S, B] int64, into `rows`: what each step reads."""
    real: Tensor
    """[S, B] bool: which picks are not padding."""
    live: Tensor
    """[S] bool: which steps are not padding. A live step may be empty (Poisson sampling)."""
    keys: Tensor
    """[S] int64: a key for each step."""
    trim: bool = False
    """Whether batches come without their padding."""

    def __len__(self) -> int:
        return self.picks.shape[0]

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.counted())

    def counted(self) -> Iterator[tuple[Batch, int | None]]:
        """The batches, each with how many of its examples are real; None, without `trim`: that would be for a tensor to say."""
        masks = zip(self.live.unbind(0), self.keys.unbind(0), strict=True)
        if not self.trim:
            for pick, real, (live, key) in zip(self.picks.unbind(0), self.real.unbind(0), masks, strict=True):
                yield {**self._read(self.rows[pick]), "real": real, "live": live, "key": key}, None
            return
        width = self.picks.shape[1]
        counts: list[int] = self.real.sum(1).tolist()
        front = min(counts, default=width) == width or bool((self.real[:, 1:] <= self.real[:, :-1]).all())
        for columns, s, (live, key) in zip(self._blocks(), range(len(counts)), masks, strict=True):
            count, real = counts[s], self.real[s]
            if count < width:
                # An empty step keeps one masked example: no zero-sized tensors.
                kept = slice(max(1, count)) if front or not count else real
                columns, real = {name: column[kept] for name, column in columns.items()}, real[kept]
            yield {**columns, "real": real, "live": live, "key": key}, count

    def _blocks(self) -> Iterator[dict[str, Tensor]]:
        """What each step reads, gathered for several steps at once where that is small."""
        rows = self.rows[self.picks]
        wide = max(column[:1].numel() for column in self.table.values())
        steps = max(1, _GATHERED // max(1, wide * rows.shape[1]))
        for block in rows.split(steps):
            read = {name: column.index_select(0, block.flatten()) for name, column in self.table.items()}
            shaped = [column.view(*block.shape, *column.shape[1:]).unbind(0) for column in read.values()]
            yield from (dict(zip(read, each, strict=True)) for each in zip(*shaped, strict=True))

    def everything(self) -> Batch:
        """All training rows of the client as one batch [N]."""
        return {**self._read(self.rows), "real": self.present, "live": self.present.any(), "key": self.keys[0]}

    def ahead(self, by: int) -> Steps:
        """The same steps, each reading what the one `by` places later reads; the last live ones read the last live one."""
        last = self.live.sum() - 1
        at = torch.minimum(torch.arange(len(self), device=self.live.device) + by, last).clamp(min=0)
        return replace(self, picks=self.picks[at], real=self.real[at], keys=self.keys[at])

    def _read(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: column[rows] for name, column in self.table.items()}

    def per_client(self) -> tuple[Tensor, ...]:
        """The tensors that differ between clients: all but the table."""
        return self.rows, self.present, self.picks, self.real, self.live, self.keys

    def of_client(self, own: tuple[Tensor, ...]) -> Steps:
        """The steps of the client whose `per_client` these are, over the same table."""
        return Steps.from_tensors(self.table, own, self.trim)

    @classmethod
    def from_tensors(cls, table: Mapping[str, Tensor], own: tuple[Tensor, ...], trim: bool) -> Steps:
        """Put together what `per_client` took apart."""
        rows, present, picks, real, live, keys = own
        return cls(table=table, rows=rows, present=present, picks=picks, real=real, live=live, keys=keys, trim=trim)


_GATHERED = 1 << 17
"""Numbers of a column that are gathered at once: half a megabyte stays in the cache."""

register_pytree_node(
    Steps,
    lambda s: ([s.table, *s.per_client()], s.trim),
    lambda kept, trim: (lambda table, *own: Steps.from_tensors(table, own, trim))(*kept),
)
