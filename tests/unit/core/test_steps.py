"""Local steps by reference to rows: what a batch holds, with padding and without."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from freehold.core import Steps


def steps(*, trim: bool) -> Steps:
    """A client with the rows 5, 6, 7, 9: a full step, a ragged one, an empty one, and one that is padding."""
    return Steps(
        table={"x": torch.arange(20.0).reshape(10, 2), "y": torch.arange(10)},
        rows=torch.tensor([5, 6, 7, 9, 5]),
        present=torch.tensor([True, True, True, True, False]),
        picks=torch.tensor([[3, 0], [1, 0], [0, 0], [0, 0]]),
        real=torch.tensor([[True, True], [True, False], [False, False], [False, False]]),
        live=torch.tensor([True, True, True, False]),
        keys=torch.tensor([11, 12, 13, 0]),
        trim=trim,
    )


def test_batches_read_the_clients_rows_and_say_what_is_real() -> None:
    batches = list(steps(trim=False))
    assert [b["y"].tolist() for b in batches] == [[9, 5], [6, 5], [5, 5], [5, 5]]
    assert [b["real"].tolist() for b in batches] == [[True, True], [True, False], [False, False], [False, False]]
    assert [bool(b["live"]) for b in batches] == [True, True, True, False]
    assert [int(b["key"]) for b in batches] == [11, 12, 13, 0]
    assert torch.equal(batches[0]["x"], torch.tensor([[18.0, 19.0], [10.0, 11.0]]))


def test_trimmed_batches_have_no_padding_but_where_they_would_be_empty() -> None:
    batches = list(steps(trim=True))
    assert [b["y"].tolist() for b in batches] == [[9, 5], [6], [5], [5]]
    assert [b["real"].tolist() for b in batches] == [[True, True], [True], [False], [False]]


def test_everything_is_all_rows_of_the_client() -> None:
    whole = steps(trim=False).everything()
    assert whole["y"].tolist() == [5, 6, 7, 9, 5] and whole["real"].tolist() == [True] * 4 + [False]
    assert bool(whole["live"]) and int(whole["key"]) == 11


def test_looking_ahead_ends_at_the_last_live_step() -> None:
    for by, keys in ((0, [11, 12, 13, 13]), (1, [12, 13, 13, 13]), (2, [13, 13, 13, 13]), (9, [13, 13, 13, 13])):
        ahead = steps(trim=False).ahead(by)
        assert ahead.keys.tolist() == keys
        assert [b["y"].tolist() for b in ahead] == [{11: [9, 5], 12: [6, 5], 13: [5, 5]}[k] for k in keys]
        assert ahead.live.tolist() == [True, True, True, False], "which steps count does not change"


def test_steps_are_a_tree_of_tensors_that_can_be_taken_apart() -> None:
    one = steps(trim=True)
    flat, spec = pytree.tree_flatten(one)
    again = pytree.tree_unflatten(flat, spec)
    assert isinstance(again, Steps) and again.trim and len(again) == 4
    assert all(a is b for a, b in zip(again.per_client(), one.per_client(), strict=True)) and again.table["x"] is one.table["x"]
    assert one.of_client(one.per_client()).keys is one.keys
