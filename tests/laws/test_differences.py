"""Law 2, differences: zero means no change, and what is sent has one spec."""

from __future__ import annotations

from freehold.core import zeros
from tests.laws.cases import COHORT, case, over_all, steps
from tests.problems import same, shapes


@over_all
def test_a_zero_mean_leaves_what_nodes_see_as_it_was(name: str) -> None:
    now = case(name)
    nothing = zeros(now.updates[COHORT[0]].contribution)
    after = now.algorithm.server_update(now.round, now.first, nothing)
    assert same(now.algorithm.broadcast(after), now.algorithm.broadcast(now.first))


@over_all
def test_the_server_keeps_its_names_shapes_and_dtypes(name: str) -> None:
    now = case(name)
    later = {k: v for k, v in shapes(now.server).items() if name != "server-momentum" or not k.startswith("velocity/")}
    assert later == shapes(now.first)
    again = now.algorithm.server_update(now.round, now.server, now.updates[COHORT[0]].contribution)
    assert shapes(again) == shapes(now.server)
    assert shapes(now.shared) == shapes(now.algorithm.broadcast(now.first))


@over_all
def test_personal_states_keep_their_names_shapes_and_dtypes(name: str) -> None:
    now = case(name)
    first = shapes(now.algorithm.enroll(now.algorithm.broadcast(now.first)))
    assert all(shapes(state) == first for state in now.personal.values())
    assert all(shapes(now.updates[c].personal) == first for c in COHORT)


@over_all
def test_contributions_have_one_spec_for_all_clients_and_rounds(name: str) -> None:
    now = case(name)
    shared = now.algorithm.broadcast(now.first)
    newcomer = now.algorithm.client_update(now.round, shared, now.algorithm.enroll(shared), steps(COHORT[0]))
    specs = [shapes(now.updates[c].contribution) for c in COHORT]
    assert all(spec == shapes(newcomer.contribution) for spec in specs)
    assert all(dtype.is_floating_point for _, dtype in specs[0].values())


@over_all
def test_metrics_are_scalars_with_the_same_names_for_all_clients(name: str) -> None:
    now = case(name)
    metrics = [shapes(now.updates[c].metrics) for c in COHORT]
    assert all(m == metrics[0] for m in metrics)
    assert all(shape == () and dtype.is_floating_point for shape, dtype in metrics[0].values())
