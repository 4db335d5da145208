"""Law 4, personal stays: what is the node's own does not leave it, and reaches no other client."""

from __future__ import annotations

import pytest
import torch

from freehold.core import Round, Tree, flatten, tree_map
from freehold.engines import LoopEngine, VectorEngine
from tests.laws.cases import COHORT, WORK, build, case, over_all, steps, task_of
from tests.problems import CLIENTS, distance, feed_for, same


def shifted(tree: Tree, by: float) -> Tree:
    """The tree with its floating tensors moved."""
    return tree_map(lambda t: t + by if t.is_floating_point() else t, tree)


@over_all
def test_names_that_are_personal_are_not_sent_unless_they_are_shared_too(name: str) -> None:
    now = case(name)
    mine, common = set(flatten(now.personal[COHORT[0]])), set(flatten(now.shared))
    assert not (mine - common) & set(flatten(now.updates[COHORT[0]].contribution))


@over_all
def test_no_personal_tensor_leaves_as_it_is(name: str) -> None:
    """Nor a multiple of it: no tensor that is sent is parallel to one that stays."""
    now, client = case(name), COHORT[2]
    personal = shifted(now.personal[client], 0.01)
    result = now.algorithm.client_update(now.round, now.shared, personal, steps(client, 2))
    for sent_name, sent in flatten(result.contribution).items():
        for kept_name, kept in (flatten(personal) | flatten({"new": result.personal})).items():
            if kept.is_floating_point() and kept.shape == sent.shape and kept.numel() > 3:
                cosine = torch.nn.functional.cosine_similarity(sent.flatten(), kept.flatten(), dim=0)
                assert abs(float(cosine)) < 1 - 1e-6, f"{sent_name} is {kept_name}"


def test_local_sends_nothing() -> None:
    for client in COHORT:
        result = case("local").updates[client]
        assert result.contribution == {} and not result.metrics
    assert not [n for n in flatten(case("select").updates[COHORT[0]].contribution) if n.startswith("local/")]


@over_all
@pytest.mark.parametrize("engine", [LoopEngine, VectorEngine])
def test_what_others_keep_and_hold_does_not_reach_a_client(name: str, engine: type[LoopEngine]) -> None:
    """Another cohort, other personal states of the others: this client's own result is the same."""
    me, others = CLIENTS[1], (CLIENTS[3], CLIENTS[4])
    found = []
    for other, by in zip(others, (0.0, 0.1), strict=True):
        now = case(name)
        runner = engine(now.algorithm, feed_for("mixed"), WORK)
        state = now.personal[COHORT[1]]
        runner.store.restore({me: state, other: shifted(state, by)})
        runner.collect(Round(2, 2, 2), now.shared, [me, other])
        runner.settle(counted=True)
        found.append(runner.store.committed()[me])
    assert same(*found) if engine is LoopEngine else distance(*found) < 1e-12


@over_all
def test_a_node_needs_nothing_but_what_is_broadcast_and_its_own_state(name: str) -> None:
    """An algorithm built anew, as on a node, does the same as the one that ran: nothing hides in a closure."""
    now = case(name)
    again = build(name, task_of("mixed"))
    one, two = (
        a.client_update(now.round, now.shared, now.personal[COHORT[0]], steps(COHORT[0], 2)) for a in (now.algorithm, again)
    )
    assert same(one.contribution, two.contribution) and same(one.personal, two.personal)
