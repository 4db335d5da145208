"""Law 3, sums only: the server uses contributions through their weighted mean and through nothing else."""

from __future__ import annotations

from functools import reduce
from operator import add

import torch

from freehold.core import ClientResult, Tally, Tree, scale, tree_map
from tests.laws.cases import COHORT, Case, case, over_all
from tests.problems import distance, feed_for

TOLERANCE = 1e-9


def tallies(now: Case) -> list[Tally]:
    """One tally per client, weighted by what the algorithm says."""
    uniform = now.algorithm.weighting == "uniform"
    return [Tally.of(now.updates[c], 1.0 if uniform else float(feed_for("mixed").size(c))) for c in COHORT]


def updated(now: Case, tally: Tally) -> Tree:
    return now.algorithm.server_update(now.round, now.server, tally.mean())


@over_all
def test_cancelling_masks_change_nothing(name: str) -> None:
    now = case(name)
    clear = tallies(now)
    rng = torch.Generator().manual_seed(5)
    # Whole numbers, so that they cancel exactly also where a sum is zero: in the real protocol all sums are fixed point.
    masks = [
        tree_map(lambda t: torch.randint(-1000, 1001, t.shape, generator=rng).to(t.dtype), clear[0].total) for _ in COHORT[1:]
    ]
    masks.append(scale(reduce(add_trees, masks), -1.0))
    hidden = [
        Tally(total=add_trees(t.total, m), weight=t.weight, clients=1, metrics=t.metrics)
        for t, m in zip(clear, masks, strict=True)
    ]
    assert distance(updated(now, reduce(add, hidden)), updated(now, reduce(add, clear))) < TOLERANCE


def add_trees(a: Tree, b: Tree) -> Tree:
    return tree_map(torch.add, a, b)


@over_all
def test_two_partial_tallies_add_up_to_the_whole(name: str) -> None:
    now = case(name)
    a, b, c = tallies(now)
    whole, parts = a + b + c, (c + a) + b
    assert (whole.weight, whole.clients) == (parts.weight, parts.clients)
    assert distance(updated(now, parts), updated(now, whole)) < TOLERANCE


@over_all
def test_the_order_of_clients_changes_nothing(name: str) -> None:
    now = case(name)
    each = tallies(now)
    assert distance(updated(now, reduce(add, each[::-1])), updated(now, reduce(add, each))) < TOLERANCE


@over_all
def test_clients_that_all_send_the_mean_look_the_same_to_the_server(name: str) -> None:
    now = case(name)
    whole = reduce(add, tallies(now))
    alike = [Tally.of(ClientResult(whole.mean(), {}), w) for w in (1.0, 2.0, 5.0)]
    assert distance(updated(now, reduce(add, alike)), updated(now, whole)) < TOLERANCE


@over_all
def test_an_algorithm_that_needs_each_contribution_says_so(name: str) -> None:
    assert case(name).algorithm.associative, "this law would have to let algorithms with associative = False go"
