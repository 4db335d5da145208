"""What sums may leave a node: none that says something of fewer than five patients."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from freehold.core import class_sums
from freehold.node.measures import FEWEST, may_leave
from freehold.node.program import released


@given(st.lists(st.integers(0, 2), max_size=40))
def test_no_count_below_five_leaves_nor_can_be_worked_out(labels: list[int]) -> None:
    y = torch.tensor(labels, dtype=torch.int64)
    outputs = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(len(y)))
    sums = class_sums(outputs, y, classes=3, losses=_losses)
    told = released(sums, len(y))
    assert may_leave({"test": told}) == {"test": told}, "the guard believes what is honest"
    assert told.examples == len(y)
    counts = torch.bincount(y, minlength=3)
    if len(y) < FEWEST:
        assert told.sums == {}
        return
    assert told.sums["count"] == len(y)
    by_class = [name for name in told.sums if "/" in name]
    if counts.min() < FEWEST:
        assert not by_class
    else:
        assert [told.sums[f"count_by_class/{k}"] for k in range(3)] == counts.tolist()


def _losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, y, reduction="none")
