"""How examples are dealt to steps, for many clients at once: arithmetic on places, without a loop over clients or steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Dealt(NamedTuple):
    """What each client's steps read, padded to the largest client."""

    picks: Tensor
    """[C, S, B] int64, into a client's rows; 0 where not real."""
    real: Tensor
    """[C, S, B] bool."""
    live: Tensor
    """[C, S] bool."""


def shuffled(
    orders: Sequence[Tensor], sizes: Sequence[int], firsts: Sequence[int], ends: Sequence[int], size: int, *, even: bool
) -> Dealt:
    """Deal shuffled passes in batches of `size`: client c walks steps `firsts[c]` to `ends[c] - 1` of its passes.

    `orders` are the passes that clients touch, one client after the other. `even`: what doesn't fill the last batch of a pass
    is dealt over all of them; else it makes a short one.
    """
    flat = torch.cat([*orders, torch.zeros(1, dtype=torch.int64)])  # the last place is where padding reads
    n, first, end = torch.tensor(sizes)[:, None], torch.tensor(firsts)[:, None], torch.tensor(ends)[:, None]
    batches = (n + size - 1) // size
    opened = first // batches  # the pass in which a client starts
    taken = ((end - 1) // batches - opened + 1) * n
    base = taken.cumsum(0) - taken
    at = first + torch.arange(max(ends[c] - firsts[c] for c in range(len(ends))))
    live = at < end
    pass_ = at // batches
    batch = at - pass_ * batches
    if even:
        share = n // batches
        over = n - share * batches
        start, length = batch * share + torch.minimum(batch, over), share + (batch < over)
    else:
        start = batch * size
        length = (n - start).clamp(max=size)
    length *= live
    start += base + (pass_ - opened) * n
    places = torch.arange(int(length.max()))
    real = places < length[..., None]
    return Dealt(flat[torch.where(real, start[..., None] + places, len(flat) - 1)], real, live)


def drawn(chosen: Sequence[Tensor]) -> Dealt:
    """Steps of which each drew its examples by itself: `chosen[c]` [steps, examples] bool."""
    steps, examples = (max(t.shape[axis] for t in chosen) for axis in (0, 1))
    taken = torch.zeros(len(chosen), steps, examples, dtype=torch.bool)
    live = torch.zeros(len(chosen), steps, dtype=torch.bool)
    for c, mine in enumerate(chosen):
        taken[c, : mine.shape[0], : mine.shape[1]] = mine
        live[c, : mine.shape[0]] = True
    length = taken.sum(2)
    places = torch.arange(max(1, int(length.max())))
    real = places < length[..., None]
    picks = torch.zeros(real.shape, dtype=torch.int64)
    picks[real] = taken.nonzero()[:, 2]
    return Dealt(picks, real, live)


def rows_of(rows: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of several clients, padded: ([C, N] int64, [C, N] bool). Padding is a client's own first row: any other could be
    another client's. Of a client without rows nothing is present, and what stands there is not to be read."""
    n = torch.tensor(sizes)[:, None]
    places = torch.arange(max(sizes))
    present = places < n
    flat = torch.cat(list(rows))
    at = n.cumsum(0) - n + torch.where(present, places, 0)
    return flat[at.clamp(max=len(flat) - 1)], present
