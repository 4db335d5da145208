"""Rules for a cohort: the same as the definition, for every kind of network, whatever the clients' sizes and rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, vmap

from freehold.core import (
    Executor,
    Objective,
    Privacy,
    State,
    Steps,
    Task,
    Tree,
    descend,
    difference,
    executing,
    fix,
    gradient,
    proximal,
    task_from,
    tilted,
)
from freehold.core.cohort import LowRank, Touched, dense, explain, weighted_sum
from freehold.core.cohort.walk import Walk
from freehold.errors import HiddenTensor
from tests.problems import distance
from tests.unit.core.cohorts import EQUAL, NETWORKS, UNEQUAL, common, each_of, padded, spread, stacked, task_of

EXECUTORS: tuple[Executor, ...] = ("stacked", "lowrank")
over_executors = pytest.mark.parametrize("executor", EXECUTORS)
over_networks = pytest.mark.parametrize("network", NETWORKS)


def cohort(executor: Executor, fn: Callable[..., Tree], steps: Steps, *mapped: Any) -> Tree:
    """`fn(steps, ...)` for all clients at once."""
    with executing(executor):
        return dense(vmap(lambda own, *rest: fn(steps.of_client(own), *rest))(steps.per_client(), *mapped))


def one_by_one(fn: Callable[..., Tree], each: list[Steps], *mapped: Any) -> Tree:
    """The same by the definitions."""
    pick = lambda tree, i: {k: v[i] for k, v in tree.items()} if isinstance(tree, dict) else tree[i]  # noqa: E731
    return stacked([fn(s, *(pick(m, i) for m in mapped)) for i, s in enumerate(each)])


@over_executors
@over_networks
@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_descend_is_the_definition(
    executor: Executor, network: str, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    task, each = task_of(network, dtype), each_of(sizes, dtype=dtype)
    ours = lambda steps, state: descend(task.objective, state, steps, 0.1)  # noqa: E731
    for start in (common, spread):
        states = start(task.init, len(each))
        assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < tolerance


@over_networks
def test_gradient_is_the_definition(network: str) -> None:
    task, each = task_of(network), each_of(UNEQUAL)
    pull = lambda state: tilted(proximal(task.objective, task.init, 0.3), {k: 0 * v + 1 for k, v in state.items()})  # noqa: E731

    def ours(steps: Steps, state: State) -> Tree:
        slope, buffers = gradient(pull(state), state, next(iter(steps)))
        return {"slope": slope, "buffers": buffers}

    states = spread(task.init, len(each))
    assert distance(cohort("stacked", ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


@over_executors
def test_clients_in_any_order_and_holes_between_their_steps(executor: Executor) -> None:
    task, each = task_of("dropout"), each_of(tuple(reversed(UNEQUAL)))
    steps = padded(each)
    live = steps.live & (torch.rand(steps.live.shape, generator=torch.Generator().manual_seed(1)) < 0.6)
    live[0] = False
    steps = replace(steps, live=live)
    each = [steps.of_client(tuple(t[i] for t in steps.per_client())) for i in range(len(each))]

    def ours(steps: Steps, slope: State) -> State:
        return descend(tilted(task.objective, slope), task.init, steps, 0.1)

    slopes = spread(task.init, len(each))
    assert distance(cohort(executor, ours, steps, slopes), one_by_one(ours, each, slopes)) < 1e-9


@over_executors
def test_a_rate_and_a_pull_for_each_client(executor: Executor) -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL)

    def ours(steps: Steps, rate: Tensor, mu: Tensor) -> State:
        return descend(proximal(task.objective, task.init, mu), task.init, steps, rate)

    rates, pulls = (torch.tensor(t, dtype=torch.float64) for t in ([0.1, 0.0, 0.3, 0.2], [0.5, 1.0, 0.0, 2.0]))
    assert distance(cohort(executor, ours, padded(each), rates, pulls), one_by_one(ours, each, rates, pulls)) < 1e-9


@over_executors
def test_a_list_of_batches_will_do(executor: Executor) -> None:
    task, each = task_of("batchnorm"), each_of(UNEQUAL)
    for batches in (
        lambda s: [b for b, _ in zip(s, range(3), strict=False)],
        lambda s: iter(list(s)),
        lambda s: [next(iter(s))] * 3,
    ):
        ours = lambda steps, state, of=batches: descend(task.objective, state, of(steps), 0.1)  # noqa: E731
        states = spread(task.init, len(each))
        assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


def test_a_start_that_all_share_stays_factored_under_pulls_towards_itself() -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL, epochs=1, size=2)
    kinds: list[int] = []

    def ours(steps: Steps, start: State, other: State) -> Tree:
        near = proximal(task.objective, start, 0.5)
        low, both = (descend(proximal(near, a, 0.2), start, steps, 0.1) for a in (start, other))
        kinds.append(sum(isinstance(v, LowRank) for v in low.values()))
        kinds.append(sum(isinstance(v, LowRank) for v in both.values()))
        return {"low": difference(low, start), "both": both}

    states, others = common(task.init, len(each)), spread(task.init, len(each))
    found = cohort("lowrank", ours, padded(each), states, others)
    assert kinds == [1, 0], "the input layer, by its Gram matrix"
    assert distance(found, one_by_one(ours, each, states, others)) < 1e-9


def test_rows_that_pile_up_and_rows_by_reference_are_both_used() -> None:
    wide = nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 3)).double()
    task, each = task_from(wide, nn.CrossEntropyLoss(), classes=3), each_of((6, 6, 4, 2), epochs=2, size=2)
    shapes: dict[str, tuple[int, ...]] = {}

    def ours(steps: Steps, start: State) -> Tree:
        local = descend(task.objective, start, steps, 0.1)
        shapes.update({k: tuple(v.rows.shape) for k, v in local.items() if isinstance(v, LowRank)})
        return local

    states = common(task.init, len(each))
    found = cohort("lowrank", ours, padded(each), states)
    assert shapes == {"0.weight": (6, 20), "2.weight": (12, 60)}, "a row per example, and a row per example and pass"
    assert distance(found, one_by_one(ours, each, states)) < 1e-9


def test_contributions_are_summed_without_building_weights() -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL, epochs=1)
    weights = torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64)

    def ours(steps: Steps, start: State) -> Tree:
        moved = difference(descend(task.objective, start, steps, 0.1), start)
        return {"model": moved, "count": steps.live.sum(), "twice": {k: 2 * v for k, v in moved.items()}}

    states = common(task.init, len(each))
    with executing("lowrank"):
        found = vmap(lambda own, start: ours(padded(each).of_client(own), start))(padded(each).per_client(), states)
    assert sum(isinstance(v, LowRank) and v.base is None for v in found["twice"].values()) == 1
    plain = one_by_one(ours, each, states)
    expected = weighted_sum(plain, weights)
    assert distance(weighted_sum(found, weights), expected) < 1e-9
    assert torch.equal(expected["count"], (plain["count"].double() * weights).sum())


def test_an_embedding_of_many_rows_keeps_the_touched_ones_only() -> None:
    class Items(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.out = nn.Embedding(400, 5, padding_idx=0), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            two = (x[:, 0].abs() * 9).long(), (x[:, 1].abs() * 9).long()
            return self.out(torch.cat([self.items(i) for i in two], 1))

    class Summed(Items):
        def forward(self, x: Tensor) -> Tensor:
            both = self.items((x[:, :2].abs() * 9).long())
            return self.out(both.flatten(1))

    for module, factored in ((Summed, 1), (Items, 0)):  # cat is nothing that a plan knows
        with torch.random.fork_rng():
            torch.manual_seed(2)
            task = task_from(module().double(), nn.CrossEntropyLoss(), classes=3)
        each, kinds = each_of(UNEQUAL), []

        def ours(steps: Steps, start: State, task: Task = task, kinds: list[int] = kinds) -> Tree:
            local = descend(proximal(task.objective, start, 0.4), start, steps, 0.3)
            kinds.append(sum(isinstance(v, Touched) for v in local.values()))
            return difference(local, start)

        states, weights = common(task.init, len(each)), torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64)
        steps = padded(each)
        with executing("lowrank"):
            found = vmap(lambda own, s, ours=ours, of=steps: ours(of.of_client(own), s))(steps.per_client(), states)
        assert kinds == [factored]
        expected = one_by_one(ours, each, states)
        assert distance(dense(found), expected) < 1e-9
        assert distance(weighted_sum(found, weights), weighted_sum(expected, weights)) < 1e-9


@over_executors
def test_a_part_of_the_model_held_still(executor: Executor) -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL)

    def ours(steps: Steps, state: State) -> State:
        head = {k: v for k, v in state.items() if task.head(k)}
        body = {k: v for k, v in state.items() if not task.head(k)}
        tuned = descend(fix(task.objective, body), head, steps, 0.1)
        return {**tuned, **descend(fix(task.objective, tuned), body, steps, 0.1)}

    states = spread(task.init, len(each))
    assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


@over_executors
def test_clipped_and_noised_gradients_are_the_definition(executor: Executor) -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL)
    objective = replace(task.objective, private=Privacy(max_norm=0.5, noise_multiplier=0.3, expected_batch=4))

    def ours(steps: Steps, state: State) -> Tree:
        return {"d": descend(objective, state, steps, 0.1), "g": gradient(objective, state, next(iter(steps)))[0]}

    states = common(task.init, len(each))
    assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


@over_executors
def test_a_loss_that_hides_a_clients_tensor_is_refused(executor: Executor) -> None:
    task, each = task_of("mlp"), each_of(EQUAL)

    def hidden(steps: Steps, by: Tensor) -> State:
        objective = Objective(losses=lambda state, batch: (by * task.objective.losses(state, batch)[0], {}))
        return descend(objective, task.init, steps, 0.1)

    def held(steps: Steps, by: Tensor) -> State:
        objective = Objective(losses=lambda state, batch: (state["by"] * task.objective.losses(state, batch)[0], {}))
        return descend(fix(objective, {"by": by}), task.init, steps, 0.1)

    by = torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64)
    with pytest.raises(HiddenTensor, match="close over") as refusal:
        cohort(executor, hidden, padded(each), by)
    assert "Objective.held" in refusal.value.hint
    assert distance(cohort(executor, held, padded(each), by), one_by_one(held, each, by)) < 1e-9


@over_executors
def test_a_descent_can_be_differentiated(executor: Executor) -> None:
    task, each = task_of("mlp"), each_of(UNEQUAL)

    def ours(steps: Steps, state: State) -> State:
        return grad(lambda s: task.objective(descend(task.objective, s, steps, 0.1), next(iter(steps)))[0])(state)

    states = spread(task.init, len(each))
    assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


def test_rules_are_in_force_within_executing_only_and_the_innermost_counts() -> None:
    assert descend.rule is None and gradient.rule is None
    with executing("stacked"):
        outer = descend.rule
        with executing("vmap"):
            assert descend.rule is None and gradient.rule is None
        with pytest.raises(ValueError, match="stop"), executing("lowrank"):
            assert descend.rule is not outer
            raise ValueError("stop")
        assert descend.rule is outer is not None
    assert descend.rule is None


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    size=st.integers(1, 5),
    epochs=st.integers(1, 3),
    mu=st.sampled_from([0.0, 0.4]),
    executor=st.sampled_from(EXECUTORS),
    network=st.sampled_from(["logistic", "mlp", "batchnorm", "twice"]),
)
def test_any_sizes_will_do(sizes: list[int], size: int, epochs: int, mu: float, executor: Executor, network: str) -> None:
    task, each = task_of(network), each_of(sizes, epochs=epochs, size=size)

    def ours(steps: Steps, start: State) -> State:
        return difference(descend(proximal(task.objective, start, mu), start, steps, 0.1), start)

    states = common(task.init, len(each))
    assert distance(cohort(executor, ours, padded(each), states), one_by_one(ours, each, states)) < 1e-9


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "branch": (lambda h: h if bool((h.detach() == h.detach()).all()) else -h, "takes a value out of a tensor"),
    "in place": (lambda h: (torch.tanh(h) * 2).add_(1), "in place"),
    "unknown": (lambda h: torch.erfinv(torch.tanh(h) / 2), "erfinv"),
    "several": (lambda h: h.chunk(2, 1)[0].repeat(1, 2), "several tensors"),
}
ACCEPTED: dict[str, Callable[[Tensor], Tensor]] = {
    "mixes examples": lambda h: torch.tanh(h - h.mean(0)),
    "crosses examples": lambda h: torch.tanh(h + h.view(-1).view(h.shape[0], 20)),
    "counts examples": lambda h: torch.tanh(h * len(h)),
    "broadcasts": lambda h: (2 - h) / (1 + h.square().sum(1, keepdim=True)) ** 2,
}


class Bent(nn.Module):
    """A network with a function of ours between two layers."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.bend = nn.Linear(20, 20), nn.Linear(20, 3), bend

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bend(self.a(x)))


def bent(bend: Callable[[Tensor], Tensor]) -> tuple[Task, float]:
    """The task, and how far the rule's result is from the definition's."""
    task, each = task_from(Bent(bend).double(), nn.CrossEntropyLoss(), classes=3), each_of(EQUAL)
    ours = lambda steps, start: descend(task.objective, start, steps, 0.1)  # noqa: E731
    states = common(task.init, len(each))
    return task, distance(cohort("lowrank", ours, padded(each), states), one_by_one(ours, each, states))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_replayed_runs_all_the_same_and_says_why(kind: str) -> None:
    bend, why = REFUSED[kind]
    if kind == "branch":
        each, task = each_of(EQUAL), task_from(Bent(bend).double(), nn.CrossEntropyLoss(), classes=3)
        ours = lambda steps, start: descend(task.objective, start, steps, 0.1)  # noqa: E731
        with pytest.raises(RuntimeError, match="vmap"):  # as under vmap without a rule
            cohort("lowrank", ours, padded(each), common(task.init, 4))
        return
    task, apart = bent(bend)
    assert apart < 1e-9
    (finding,) = explain(task.objective)
    assert finding.how == "taped" and why in finding.why and "\n" not in finding.why
    assert finding.batch["x"] == (4, 20)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_plan_is_of_one_client_so_its_examples_may_mix(kind: str) -> None:
    task, apart = bent(ACCEPTED[kind])
    assert apart < 1e-9
    assert [f.how for f in explain(task.objective)] == ["replayed"] and not explain(task.objective)[0].why


def test_a_network_that_no_tape_can_take_is_mapped() -> None:
    task, each = task_of("gated"), each_of(EQUAL)
    cohort("stacked", lambda steps: descend(task.objective, task.init, steps, 0.1), padded(each))
    (finding,) = explain(task.objective)
    assert finding.how == "mapped" and "gru" in finding.why


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"gated"}))
def test_known_networks_are_replayed(network: str) -> None:
    task, each = task_of(network), each_of(EQUAL)
    cohort("stacked", lambda steps: descend(task.objective, task.init, steps, 0.1), padded(each))
    assert [(f.how, f.why) for f in explain(task.objective)] == [("replayed", "")]


def test_a_pass_that_is_not_the_same_twice_is_found_out() -> None:
    calls = []

    def fickle(h: Tensor) -> Tensor:
        calls.append(1)
        return torch.tanh(h * len(calls))

    task = task_from(Bent(fickle).double(), nn.CrossEntropyLoss(), classes=3)
    cohort("stacked", lambda steps: descend(task.objective, task.init, steps, 0.1), padded(each_of(EQUAL)))
    assert [f.how for f in explain(task.objective)] == ["taped"]
    assert "a second one was another" in explain(task.objective)[0].why


def test_a_step_runs_on_the_clients_that_still_have_work_and_no_others() -> None:
    """The fraction of useful steps, counted where they are taken: all of them, on log-normal sizes."""
    sizes = (torch.randn(60, generator=torch.Generator().manual_seed(5)) + 3.5).exp().clamp(1, 400).int().tolist()
    each = each_of(tuple(sorted(sizes, reverse=True)))
    steps = padded(each)
    table = {k: v.expand(len(each), *v.shape) for k, v in steps.table.items()}  # as a rule is given it
    taken = sum(stride.n for stride in Walk(replace(steps, table=table), 0.1, torch.float64))
    assert taken == int(steps.live.sum()) == sum(len(s) for s in each) < steps.live.numel() / 2
