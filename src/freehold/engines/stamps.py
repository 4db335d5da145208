"""Which of a client's rows in an arena is which: each has the stamp of the settled round that wrote it, 0 if none did."""

from __future__ import annotations

import torch
from torch import Tensor

SLOTS = 3
"""Rows of a client: what the checkpoint knows, what the last settled round left, and a free one."""

COLUMNS = 2 * SLOTS
"""Of a table of stamps [C, COLUMNS]: a stamp for each slot, then a checksum for each."""


def latest(table: Tensor, upto: int) -> tuple[Tensor, Tensor]:
    """For each client the slot [C] that was written last, up to a settled round, and its stamp [C]; 0 where there is none."""
    stamps = table[:, :SLOTS]
    stamp, slot = torch.where(stamps <= upto, stamps, 0).max(1)
    return slot, stamp


def free(table: Tensor, settled: int, kept: int) -> Tensor:
    """For each client the slot to write to [C]: neither what was settled last nor what the checkpoint `kept`.

    Of several that which is pending already, or else one that takes room on the disk already.
    """
    stamps = table[:, :SLOTS]
    places = torch.arange(SLOTS)
    score = 8 * (stamps > settled) + 4 * (stamps > 0) - places
    for upto in (settled, kept):
        slot, stamp = latest(table, upto)
        score = torch.where((places == slot.unsqueeze(1)) & (stamp > 0).unsqueeze(1), -SLOTS, score)
    return score.argmax(1)
