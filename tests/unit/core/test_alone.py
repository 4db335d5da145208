"""The primitives for one client, imperatively: equal to their definitions, and followed only where nobody looks on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from freehold.core import Objective, State, descend, fix, gradient, imperative, proximal, task_from, tilted
from freehold.core.seated import ModuleLosses
from freehold.engines import Work
from tests.laws.cases import steps, task_of
from tests.problems import CLASSES, PROBLEMS, distance, feed_for

WORK = Work(batch_size=4, epochs=2)


def objectives(problem: str) -> dict[str, tuple[Objective, State]]:
    """Objectives with every term, and where they start."""
    task = task_of(problem)
    away = {k: t + 0.1 if t.is_floating_point() else t for k, t in task.init.items()}
    head = {k: t for k, t in task.init.items() if task.head(k)}
    body = {k: t for k, t in task.init.items() if not task.head(k)}
    found = {
        "plain": (task.objective, task.init),
        "pulled": (proximal(proximal(task.objective, away, 0.3), body, 0.2), task.init),
        "tilted": (tilted(task.objective, {k: torch.ones_like(t) for k, t in task.parameters.items()}), task.init),
    }
    return found | ({"fixed": (fix(task.objective, body), head)} if body and head else {})


@pytest.mark.parametrize("problem", PROBLEMS)
def test_descent_and_gradient_are_those_of_the_definition(problem: str) -> None:
    mine = steps("c6", 1, work=WORK, problem=problem)
    for name, (objective, state) in objectives(problem).items():
        defined = descend(objective, state, mine, 0.05)
        batch = next(iter(mine))
        slope = gradient(objective, state, batch)
        for _ in range(2):  # the second time, a quiet module is known as one
            with imperative():
                assert distance(dict(descend(objective, state, mine, 0.05)), dict(defined)) < 1e-12, name
                assert distance(dict(descend(objective, state, list(mine), 0.05)), dict(defined)) < 1e-12, name
                for found, expected in zip(gradient(objective, state, batch), slope, strict=True):
                    assert distance(dict(found), dict(expected)) < 1e-12, name
        assert distance(dict(state), {k: task_of(problem).init[k] for k in state}) == 0.0, "where it began is as it was"


@pytest.mark.parametrize("problem", ["plain", "mixed"])
def test_poisson_steps_without_an_example_are_those_of_the_definition(problem: str) -> None:
    mine = feed_for(problem).steps("c1", 0, Work(batch_size=1, steps=12, poisson=True))
    assert any(not batch["real"].any() for batch in mine)
    task = task_of(problem)
    defined = descend(task.objective, task.init, mine, 0.05)
    for _ in range(2):
        with imperative():
            assert distance(dict(descend(task.objective, task.init, mine, 0.05)), dict(defined)) < 1e-12


def test_under_a_transform_and_under_autograd_the_definition_runs() -> None:
    task, mine = task_of("plain"), steps("c6")
    batch = next(iter(mine))

    def after(scale: Tensor) -> Tensor:
        moved = descend(task.objective, {k: t * scale for k, t in task.init.items()}, [batch], 0.1)
        return task.objective(moved, batch)[0]

    at = torch.tensor(1.1, dtype=torch.float64)
    expected = grad(after)(at)
    with imperative():
        assert torch.allclose(grad(after)(at), expected)
        leaf = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(after(leaf), leaf)
        assert torch.allclose(slope, expected)
        each = vmap(after)(torch.stack([at, at]))
    assert torch.allclose(each, after(at).expand(2))


class Fickle(nn.Module):
    """Draws random numbers only once its weights have moved."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, 0.5, self.training) if float(self.out.weight.detach().sum()) > 100 else x
        return self.out(dropped)


def test_a_module_that_draws_after_all_gets_its_numbers_from_the_keys() -> None:
    module = Fickle().double()
    task, other = (task_from(module, F.cross_entropy, classes=CLASSES) for _ in range(2))
    calm, moved = task.init, {k: t + 10 for k, t in task.init.items()}
    mine = steps("c6")
    defined = descend(other.objective, moved, mine, 0.05)
    with imperative():
        for _ in range(2):
            descend(task.objective, calm, mine, 0.05)
        losses = task.objective.losses
        assert isinstance(losses, ModuleLosses) and losses.quiet(moved)
        before = torch.get_rng_state()
        found = descend(task.objective, moved, mine, 0.05)
        assert distance(dict(found), dict(defined)) < 1e-9 and torch.equal(torch.get_rng_state(), before)
        assert not losses.quiet(moved)


class Counting(nn.Module):
    """Replaces a buffer on each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, CLASSES)
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return self.out(x)


def test_a_buffer_that_a_module_replaces_is_refreshed() -> None:
    task, mine = task_from(Counting().double(), F.cross_entropy, classes=CLASSES), steps("c6")
    defined = descend(task.objective, task.init, mine, 0.05)
    for _ in range(3):
        with imperative():
            found = descend(task.objective, task.init, mine, 0.05)
        assert distance(dict(found), dict(defined)) < 1e-12 and float(found["passes"]) == len(mine)
    assert float(task.init["passes"]) == 0.0
