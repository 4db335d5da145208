"""The seam for a cohort program: a rule of its own under exactly one vmap, the definition anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from freehold.core import Objective, State, Steps, custom_vmap, descend, fix, gradient, proximal, train
from freehold.engines import LoopEngine, VectorEngine, Work
from tests.laws.cases import build
from tests.padding import pad
from tests.problems import CLIENTS, distance, feed_for, plain

TASK = plain()
WORK = Work(batch_size=4, epochs=1)
EACH = [replace(feed_for().steps(c, 0, WORK), trim=False) for c in CLIENTS[:4]]
ALL = pad(EACH)


class Rule:
    """A rule that counts its calls, and does what the definition does, one client after the other."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ranks: set[int] = set()

    def __call__(self, size: int, objective: Objective, state: State, batches: Any, lr: float | Tensor) -> State:
        self.sizes.append(size)
        self.ranks |= {t.dim() for t in state.values()}
        mapped = (objective, state, batches, lr)
        axes = pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, mapped)
        return vmap(descend.fn, in_dims=axes)(*mapped)


@pytest.fixture
def rule() -> Iterator[Rule]:
    counting = Rule()
    descend.def_vmap(counting)
    yield counting
    descend.def_vmap(None)


def ours(steps: Steps, state: State, lr: float | Tensor = 0.1) -> State:
    """What an algorithm does: a primitive on data that only partly differ between clients."""
    return descend(proximal(TASK.objective, TASK.init, 0.3), state, steps, lr)


def over_clients(fn: Callable[..., State], *more: Tensor) -> State:
    states = {k: torch.stack([t * (1 + i) for i in range(4)]) for k, t in TASK.init.items()}

    def one(own: Sequence[Tensor], state: State, *rest: Tensor) -> State:
        return fn(ALL.of_client(tuple(own)), state, *rest)

    return vmap(one)(ALL.per_client(), states, *more)


def one_by_one(*more: Sequence[float]) -> State:
    each = [ours(s, {k: t * (1 + i) for k, t in TASK.init.items()}, *(m[i] for m in more)) for i, s in enumerate(EACH)]
    return {k: torch.stack([e[k] for e in each]) for k in TASK.init}


def test_under_one_vmap_the_rule_runs_and_gives_the_same(rule: Rule) -> None:
    assert distance(over_clients(ours), one_by_one()) < 1e-12
    assert rule.sizes == [4] and rule.ranks == {2, 3}, "the rule sees every tensor with a leading client axis"


def test_a_rate_per_client_is_stacked_too(rule: Rule) -> None:
    rates = [0.1, 0.2, 0.05, 0.3]
    assert distance(over_clients(ours, torch.tensor(rates, dtype=torch.float64)), one_by_one(rates)) < 1e-12
    assert rule.sizes == [4]


def test_what_is_not_mapped_is_expanded(rule: Rule) -> None:
    out = vmap(lambda own: descend(TASK.objective, TASK.init, ALL.of_client(own), 0.1))(ALL.per_client())
    each = [descend(TASK.objective, TASK.init, s, 0.1) for s in EACH]
    assert distance(out, {k: torch.stack([e[k] for e in each]) for k in TASK.init}) < 1e-12
    assert rule.sizes == [4]


def test_outside_of_a_vmap_the_definition_runs(rule: Rule) -> None:
    descend(TASK.objective, TASK.init, EACH[0], 0.1)
    assert not rule.sizes


def test_under_two_vmaps_the_definition_runs(rule: Rule) -> None:
    twice = {k: torch.stack([torch.stack([t, 2 * t, 3 * t]), torch.stack([t, t, t])]) for k, t in TASK.init.items()}
    out = vmap(vmap(lambda state: ours(EACH[0], state)))(twice)
    assert not rule.sizes
    expected = ours(EACH[0], {k: 3 * t for k, t in TASK.init.items()})
    assert distance({k: t[0, 2] for k, t in out.items()}, expected) < 1e-12


def test_under_a_gradient_the_definition_runs(rule: Rule) -> None:
    def after(state: State) -> Tensor:
        return TASK.objective(ours(EACH[0], state), next(iter(EACH[0])))[0]

    alone = grad(after)(dict(TASK.init))
    assert not rule.sizes
    both = vmap(grad(after))({k: torch.stack([t, t]) for k, t in TASK.init.items()})
    assert not rule.sizes and distance({k: t[1] for k, t in both.items()}, alone) < 1e-12


def test_under_a_gradient_outside_of_the_vmap_the_definition_is_differentiated(rule: Rule) -> None:
    def total(state: State) -> Tensor:
        return sum(
            t.sum() for t in over_clients(lambda steps, start: ours(steps, {k: start[k] + state[k] for k in state})).values()
        )

    slope = grad(total)({k: torch.zeros_like(t) for k, t in TASK.init.items()})
    descend.def_vmap(None)
    assert distance(slope, grad(total)({k: torch.zeros_like(t) for k, t in TASK.init.items()})) < 1e-12


def test_autograd_that_looks_on_gets_the_definition(rule: Rule) -> None:
    states = {k: torch.stack([t, t]).requires_grad_() for k, t in TASK.init.items()}
    out = vmap(lambda state: ours(EACH[0], state))(states)
    assert not rule.sizes
    assert distance({k: t[0].detach() for k, t in out.items()}, ours(EACH[0], TASK.init)) < 1e-12


def test_without_a_rule_nothing_changes() -> None:
    assert descend.rule is None and gradient.rule is None
    assert distance(over_clients(ours), one_by_one()) < 1e-12


@pytest.mark.parametrize("name", ["ditto", "fedrep", "scaffold", "apfl", "pfedme"])
def test_algorithms_run_by_the_rule_on_the_vector_engine_and_agree_with_the_loop(rule: Rule, name: str) -> None:
    algorithm, feed = build(name, TASK), feed_for()
    loop, vector = LoopEngine(algorithm, feed, WORK), VectorEngine(algorithm, feed, WORK, chunk=3, executor="vmap")
    servers = [list(train(algorithm, e, CLIENTS[:5], rounds=1))[-1].server for e in (loop, vector)]
    assert set(rule.sizes) == {3, 2}
    assert distance(*servers) < 1e-9 and distance(dict(loop.store.committed()), dict(vector.store.committed())) < 1e-9


def test_a_decorated_function_keeps_its_name_and_takes_any_tree() -> None:
    @custom_vmap
    def weigh(tree: dict[str, Tensor], *, by: Tensor, times: int = 1) -> tuple[dict[str, Tensor], Tensor]:
        """Weigh a tree."""
        return {k: t * by * times for k, t in tree.items()}, by

    @weigh.def_vmap
    def _(size: int, tree: dict[str, Tensor], *, by: Tensor, times: int = 1) -> tuple[dict[str, Tensor], Tensor]:
        return {k: torch.einsum("c...,c->c...", t, by) * times for k, t in tree.items()}, by

    assert weigh.__name__ == "weigh" and weigh.__doc__ == "Weigh a tree."
    tree, by = {"a": torch.ones(3, 2), "b": torch.ones(3)}, torch.tensor([1.0, 2.0, 3.0])
    out, same_by = vmap(lambda t, b: weigh(t, by=b, times=2))(tree, by)
    assert out["a"][:, 0].tolist() == out["b"].tolist() == [2.0, 4.0, 6.0] and torch.equal(same_by, by)


def test_a_mapped_axis_that_is_not_the_first_is_moved_there(rule: Rule) -> None:
    states = {k: torch.stack([t, 2 * t], dim=-1) for k, t in TASK.init.items()}
    out = vmap(lambda state: descend(fix(TASK.objective, {}), state, EACH[0], 0.1), in_dims=-1)(states)
    assert rule.sizes == [2]
    assert distance({k: t[0] for k, t in out.items()}, descend(TASK.objective, TASK.init, EACH[0], 0.1)) < 1e-12
