"""Clients that were fed one by one, put together: what feeding a cohort at once is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freehold.core import Batch, Steps, tree_map


def pad(each: Sequence[Steps]) -> Steps:
    """Several clients' steps as one, with a leading client axis and masks; the table is shared."""
    wide = {
        "rows": max(len(s.rows) for s in each),
        "steps": max(len(s) for s in each),
        "batch": max(s.picks.shape[1] for s in each),
    }

    def grown(t: Tensor, *shape: int) -> Tensor:
        out = t.new_zeros(shape)
        out[tuple(slice(n) for n in t.shape)] = t
        return out

    steps, batch = wide["steps"], wide["batch"]
    return Steps(
        table=each[0].table,
        # Padding reads the client's own first row: any other could be another client's.
        rows=torch.stack([torch.cat([s.rows, s.rows[:1].expand(wide["rows"] - len(s.rows))]) for s in each]),
        present=torch.stack([grown(s.present, wide["rows"]) for s in each]),
        picks=torch.stack([grown(s.picks, steps, batch) for s in each]),
        real=torch.stack([grown(s.real, steps, batch) for s in each]),
        live=torch.stack([grown(s.live, steps) for s in each]),
        keys=torch.stack([grown(s.keys, steps) for s in each]),
    )


def pad_batches(each: Sequence[Batch]) -> Batch:
    """Several clients' batches as one, with a leading client axis; padding is not `real`."""
    wide = max(len(b["real"]) for b in each)

    def grown(t: Tensor) -> Tensor:
        return torch.cat([t, t.new_zeros(wide - len(t), *t.shape[1:])]) if t.dim() else t

    return tree_map(lambda *ts: torch.stack([grown(t) for t in ts]), *each)
