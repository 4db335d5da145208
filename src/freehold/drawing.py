"""Seeds and cohorts: what simulator, nodes and coordinator must draw alike, without a tensor in sight."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from freehold.errors import UsageError


def digest_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) that is the same in every process and on every machine."""
    text = "|".join([f"{type(part).__name__}:{part}" for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def draw_cohort(clients: Sequence[str], size: int, *, seed: int, index: int) -> list[str]:
    """`size` of `clients`, without replacement, by a digest of (seed, round); in the order of `clients`."""
    if not 1 <= size <= len(clients):
        raise UsageError(
            f"A cohort of {size} was asked for, but there are {len(clients)} clients.", hint="Choose a cohort between 1 and that."
        )
    # Not one look at those that are not asked: there may be a million of them.
    chosen = random.Random(digest_seed("cohort", seed, index)).sample(range(len(clients)), size)
    return [clients[i] for i in sorted(chosen)]
