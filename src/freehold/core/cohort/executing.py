"""Which rule `descend` and `gradient` follow under `vmap`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from freehold.core.cohort.rules import rules_of
from freehold.core.objective import descend, gradient

Executor: TypeAlias = Literal["vmap", "stacked", "lowrank"]
"""How a cohort descends: by the definition under vmap; with its parameters stacked; or with weights that stay factored where
that is smaller, and stacked where it isn't."""


@contextmanager
def executing(name: Executor) -> Iterator[None]:
    """Within it, in this thread, `descend` and `gradient` run for a cohort by the rules of `name`; results are the same up to
    rounding."""
    rules = rules_of(name)
    with descend.following(rules.descend), gradient.following(rules.gradient):
        yield
