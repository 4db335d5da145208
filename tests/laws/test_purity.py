"""Law 1, pure: the same inputs give the same result, bit for bit, and are unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from freehold.core import Tree
from tests.laws.cases import COHORT, case, over_all, steps, validation
from tests.problems import copied, feed_for, same


def check(function: Callable[..., Tree], *trees: Tree) -> None:
    """Call twice, under two states of torch's own generator, which has to stay where it is."""
    before = [copied(tree) for tree in trees]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(copied(function(*trees)))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(*results)
    assert all(same(a, b) for a, b in zip(trees, before, strict=True))


@over_all
def test_a_client_update_is_pure(name: str) -> None:
    now, client = case(name), COHORT[2]

    def update(shared: Tree, personal: Tree, data: Tree) -> Tree:
        mine = replace(steps(client, 2), table=data)
        return now.algorithm.client_update(now.round, shared, personal, mine)._asdict()

    check(update, now.shared, now.personal[client], {"x": feed_for("mixed").x, "y": feed_for("mixed").y})


@over_all
def test_a_server_update_is_pure(name: str) -> None:
    now = case(name)
    contribution = now.updates[COHORT[0]].contribution
    check(lambda server, mean: now.algorithm.server_update(now.round, server, mean), now.server, contribution)


@over_all
def test_init_broadcast_and_enroll_give_the_same_each_time(name: str) -> None:
    now = case(name)
    assert same(now.algorithm.init(), now.algorithm.init())
    check(now.algorithm.broadcast, now.server)
    check(now.algorithm.enroll, now.shared)


@over_all
def test_adapting_and_predicting_are_pure(name: str) -> None:
    now, client = case(name), COHORT[2]
    x = feed_for("mixed").batch(client, "test")["x"]

    def adapt(shared: Tree, personal: Tree, batch: Tree) -> Tree:
        return now.algorithm.adapt(shared, personal, steps(client, -1), batch)

    check(adapt, now.shared, now.personal[client], validation(client))
    adapted = adapt(now.shared, now.personal[client], validation(client))
    check(
        lambda shared, personal, data: {"outputs": now.algorithm.outputs(shared, personal, data["x"])},
        now.shared,
        adapted,
        {"x": x},
    )
    check(now.algorithm.personalize, now.shared, adapted)
