"""An objective as data, and the primitives that follow it downhill, held against torch's own autograd and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad

from freehold.core import (
    Batch,
    Objective,
    Privacy,
    State,
    Task,
    descend,
    descend_adam,
    fix,
    flatten,
    gradient,
    private,
    proximal,
    split,
    task_from,
    tilted,
)
from freehold.errors import NotPrivate
from tests.problems import distance, same

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


TASK = task_from(module(), F.cross_entropy, classes=3)


def batch(count: int = 6, *, seed: int = 0, real: int | None = None, live: bool = True, key: int = 1) -> Batch:
    y = torch.arange(count) % 3
    on = torch.arange(count) < (count if real is None else real)
    return {"x": draw(count, 4, seed=seed), "y": y, "real": on, "live": torch.tensor(live), "key": torch.tensor(key)}


BATCHES = [batch(6, seed=s, real=r, key=s) for s, r in enumerate((6, 4, 1))]


def anchor(seed: int) -> State:
    return {k: draw(*t.shape, seed=seed) for k, t in TASK.init.items()}


# What is minimized.


def test_the_loss_is_the_mean_over_real_examples() -> None:
    one = batch(6, real=4)
    value, _ = TASK.objective(TASK.init, one)
    logits = functional_call(module(), dict(TASK.init), (one["x"][:4],))
    assert torch.isclose(value, F.cross_entropy(logits, one["y"][:4]))


def test_pulls_and_tilt_are_added_as_the_docstring_says() -> None:
    a, b, slope, one = anchor(1), anchor(2), anchor(3), batch()
    objective = tilted(proximal(proximal(TASK.objective, a, 0.3), b, torch.tensor(0.7)), slope)
    expected = TASK.objective(TASK.init, one)[0]
    for k, w in TASK.init.items():
        expected = expected + 0.15 * ((w - a[k]) ** 2).sum() + 0.35 * ((w - b[k]) ** 2).sum() + (slope[k] * w).sum()
    assert torch.isclose(objective(TASK.init, one)[0], expected)


@pytest.mark.parametrize(
    "objective",
    [
        TASK.objective,
        proximal(TASK.objective, anchor(1), 0.5),
        tilted(tilted(TASK.objective, anchor(1)), anchor(2)),
        tilted(proximal(proximal(TASK.objective, anchor(1), 0.5), anchor(2), 2.0), {"0.bias": draw(5)}),
    ],
)
def test_the_gradient_is_that_of_the_objective(objective: Objective) -> None:
    one = batch(6, real=4)
    expected = grad(lambda state: objective(state, one)[0])(dict(TASK.init))
    assert distance(gradient(objective, TASK.init, one)[0], expected) < 1e-12


def test_an_empty_batch_has_no_gradient_but_that_of_the_pulls() -> None:
    empty, a = batch(3, real=0), anchor(1)
    assert not any(g.any() for g in gradient(TASK.objective, TASK.init, empty)[0].values())
    pulled = gradient(proximal(TASK.objective, a, 2.0), TASK.init, empty)[0]
    assert distance(pulled, {k: 2 * (w - a[k]) for k, w in TASK.init.items()}) < 1e-12


def test_what_is_fixed_is_neither_trained_nor_pulled() -> None:
    head, body = split(TASK.init, TASK.head)
    objective = proximal(fix(TASK.objective, head), anchor(1), 0.5)
    one = batch()
    assert set(gradient(objective, body, one)[0]) == set(body)
    expected = grad(lambda part: proximal(TASK.objective, {k: anchor(1)[k] for k in body}, 0.5)({**part, **head}, one)[0])(
        dict(body)
    )
    assert distance(gradient(objective, body, one)[0], expected) < 1e-12
    assert set(descend(objective, body, BATCHES, 0.1)) == set(body)


def test_nothing_to_train_stays_nothing() -> None:
    assert descend(fix(TASK.objective, TASK.init), {}, BATCHES, 0.1) == {}


def test_a_pull_of_strength_zero_is_none_at_all() -> None:
    assert proximal(TASK.objective, anchor(1), 0.0) is TASK.objective
    assert len(proximal(TASK.objective, anchor(1), torch.tensor(0.0)).pulls) == 1


def test_buffers_are_refreshed_and_neither_trained_nor_pulled() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    task = task_from(net, F.cross_entropy, classes=3)
    far = {k: t + 1 for k, t in task.init.items()}
    one = batch()
    grads, buffers = gradient(proximal(task.objective, far, 1.0), task.init, one)
    assert set(grads) == set(task.parameters) and set(buffers) == task.objective.buffers
    assert same(buffers, gradient(task.objective, task.init, one)[1])
    assert int(descend(task.objective, task.init, [one] * 3, 0.1)["1.num_batches_tracked"]) == 3


# Going downhill.


def theirs(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], batches: list[Batch]) -> State:
    """The same steps by an optimizer of torch."""
    net = module()
    optimizer = make(list(net.parameters()))
    for one in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(one["x"][one["real"]]), one["y"][one["real"]]).backward()
        optimizer.step()
    return {k: p.detach() for k, p in net.named_parameters()}


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5, dtype=F64)])
def test_descending_is_sgd(lr: float | Tensor) -> None:
    assert distance(descend(TASK.objective, TASK.init, BATCHES, lr), theirs(lambda p: torch.optim.SGD(p, 0.5), BATCHES)) < 1e-12


def test_descending_with_adam_is_adam_and_goes_on_where_it_stopped() -> None:
    expected = theirs(lambda p: torch.optim.Adam(p, 0.05), BATCHES * 2)
    state, memory = descend_adam(TASK.objective, TASK.init, {}, BATCHES, 0.05)
    assert float(memory["count"]) == 3
    state, memory = descend_adam(TASK.objective, state, memory, BATCHES, 0.05)
    assert distance(state, expected) < 1e-10


def test_steps_that_are_padding_change_nothing() -> None:
    dead = batch(live=False)
    with_padding, without = [BATCHES[0], dead, BATCHES[1], dead], BATCHES[:2]
    assert same(*(descend(proximal(TASK.objective, anchor(1), 1.0), TASK.init, b, 0.1) for b in (with_padding, without)))
    assert all(map(same, *(descend_adam(TASK.objective, TASK.init, {}, b, 0.1) for b in (with_padding, without))))


def test_no_steps_leave_the_state_as_it_is() -> None:
    assert same(descend(TASK.objective, TASK.init, [], 0.1), TASK.init)
    state, memory = descend_adam(TASK.objective, TASK.init, {}, [], 0.1)
    assert same(state, TASK.init) and float(memory["count"]) == 0


# Record-level privacy.


def under(max_norm: float, noise: float = 0.0, expected: float = 4.0, task: Task = TASK) -> Objective:
    return private(task, Privacy(max_norm=max_norm, noise_multiplier=noise, expected_batch=expected)).objective


@pytest.mark.parametrize("max_norm", [0.05, 0.5, 2.0, 1e6])
def test_each_example_is_clipped_by_itself(max_norm: float) -> None:
    one, net = batch(6, real=5), module()
    expected = {k: torch.zeros_like(t) for k, t in TASK.init.items()}
    norms = []
    for i in range(5):
        grads = torch.autograd.grad(F.cross_entropy(net(one["x"][i : i + 1]), one["y"][i : i + 1]), list(net.parameters()))
        norms.append(float(sum((g**2).sum() for g in grads)) ** 0.5)
        for k, g in zip(expected, grads, strict=True):
            expected[k] += g * min(1.0, max_norm / norms[-1]) / 4.0
    assert distance(gradient(under(max_norm), TASK.init, one)[0], expected) < 1e-10
    assert max_norm > 1 or max(norms) > max_norm, "nothing was clipped"


def test_the_norm_that_is_clipped_is_that_of_what_is_trained() -> None:
    head, body = split(TASK.init, TASK.head)
    one = batch(1)
    got = gradient(fix(under(0.01, expected=1.0), head), body, one)[0]
    assert abs(float(torch.cat([g.flatten() for g in got.values()]).norm()) - 0.01) < 1e-12


def test_pulls_and_tilt_touch_no_example_so_they_are_not_clipped() -> None:
    a, slope, one = anchor(1), anchor(2), batch()
    bare = gradient(under(0.1), TASK.init, one)[0]
    both = gradient(tilted(proximal(under(0.1), a, 0.5), slope), TASK.init, one)[0]
    assert distance(both, {k: g + 0.5 * (TASK.init[k] - a[k]) + slope[k] for k, g in bare.items()}) < 1e-12


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_an_example_that_is_not_finite_contributes_nothing(wrong: float) -> None:
    one = batch(6, real=5)
    broken = {**one, "x": one["x"].clone()}
    broken["x"][2, 1] = wrong
    without = {**one, "real": one["real"] & (torch.arange(6) != 2)}
    assert same(gradient(under(0.5), TASK.init, broken)[0], gradient(under(0.5), TASK.init, without)[0])


def test_padding_adds_nothing_and_moves_no_noise() -> None:
    short, long = batch(3), batch(6, real=3)
    long = {**long, "x": torch.cat([short["x"], long["x"][3:]]), "y": torch.cat([short["y"], long["y"][3:]])}
    assert distance(*(gradient(under(0.5, 1.0), TASK.init, b)[0] for b in (short, long))) < 1e-12


WIDE = task_from(nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 3)).double(), F.cross_entropy, classes=3)


def noise_of(max_norm: float, noise: float, expected: float, key: int = 1) -> dict[str, Tensor]:
    """The gradient of a batch without examples: noise alone."""
    nobody = {**batch(2, real=0, key=key), "x": draw(2, 200)}
    return flatten(gradient(under(max_norm, noise, expected, WIDE), WIDE.init, nobody)[0])


@pytest.mark.parametrize(("max_norm", "noise", "expected"), [(1.0, 1.0, 1.0), (0.5, 3.0, 8.0)])
def test_the_noise_has_the_promised_spread_also_where_a_poisson_batch_is_empty(
    max_norm: float, noise: float, expected: float
) -> None:
    scaled = noise_of(max_norm, noise, expected)["0.weight"].flatten() * expected / (max_norm * noise)
    assert abs(float(scaled.std()) - 1) < 0.02  # four standard errors of 20 000 numbers
    assert stats.kstest(scaled.numpy(), "norm").pvalue > 1e-3


def test_the_noise_of_each_step_and_each_tensor_is_its_own() -> None:
    first, second = noise_of(1.0, 1.0, 1.0, key=1), noise_of(1.0, 1.0, 1.0, key=2)
    assert same(first, noise_of(1.0, 1.0, 1.0, key=1))
    count = 300
    pairs = [(first["0.weight"], second["0.weight"]), (first["0.weight"], first["1.weight"])]
    for a, b in pairs:
        both = torch.stack([a.flatten()[:count], b.flatten()[:count]])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / count**0.5


def test_one_example_more_moves_the_sum_by_at_most_max_norm() -> None:
    with_it, without = batch(6), batch(6, real=5)
    moved = {
        k: g - gradient(under(0.3, 1.0), TASK.init, without)[0][k]
        for k, g in gradient(under(0.3, 1.0), TASK.init, with_it)[0].items()
    }
    assert float(torch.cat([m.flatten() for m in moved.values()]).norm()) * 4.0 <= 0.3 + 1e-9


def test_the_loss_itself_is_not_to_be_had() -> None:
    with pytest.raises(NotPrivate) as refusal:
        under(1.0)(TASK.init, batch())
    assert refusal.value.hint


def test_batch_norm_is_refused() -> None:
    task = task_from(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double(), F.cross_entropy, classes=3)
    with pytest.raises(NotPrivate, match="BatchNorm") as refusal:
        gradient(under(1.0, task=task), task.init, batch())
    assert "GroupNorm" in refusal.value.hint


def test_dropout_draws_a_mask_for_each_example() -> None:
    """Two examples that are equal get different masks, as in a batch."""
    task = task_from(nn.Sequential(nn.Linear(4, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double(), F.cross_entropy, classes=3)
    one = batch(2)
    alike = {**one, "x": one["x"][:1].expand(2, 4), "y": one["y"][:1].expand(2)}
    only = [{**alike, "real": torch.arange(2) == i} for i in range(2)]
    first, second = (gradient(under(1e6, task=task), task.init, b)[0] for b in only)
    assert not torch.equal(first["2.weight"] != 0, second["2.weight"] != 0)


def test_privacy_does_not_change_the_task_it_is_put_on() -> None:
    shielded = private(TASK, Privacy(max_norm=1.0, noise_multiplier=1.0, expected_batch=4))
    assert TASK.objective.private is None
    assert replace(shielded, objective=TASK.objective) == TASK


def test_a_recurrent_layer_is_refused_where_each_example_needs_its_gradient() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    task = private(
        task_from(Last(), nn.CrossEntropyLoss(), classes=2), Privacy(max_norm=1.0, noise_multiplier=0.0, expected_batch=3)
    )
    on, off = torch.ones(3, dtype=torch.bool), torch.tensor(0)
    given = {"x": torch.randn(3, 5, 2), "y": torch.tensor([0, 1, 0]), "real": on, "live": on[0], "key": off}
    with pytest.raises(NotPrivate, match="per example"):
        gradient(task.objective, task.init, given)
