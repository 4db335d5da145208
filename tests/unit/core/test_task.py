"""A task from any module and loss: its parts, its losses per example, its sums, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freehold.core import Batch, Task, algorithm_entry, class_sums, descend, task_from, train, value_sums
from freehold.engines import Feed, LoopEngine, VectorEngine, Work
from freehold.errors import TaskError

F64 = torch.float64


def data(count: int = 6, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=rng, dtype=F64), torch.randint(classes, (count,), generator=rng)


def batch(x: Tensor, y: Tensor) -> Batch:
    on = torch.ones(len(x), dtype=torch.bool)
    return {"x": x, "y": y, "real": on, "live": on.any(), "key": torch.tensor(1)}


def net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Tied(nn.Module):
    """Two names for one matrix: the head is the first layer again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.tanh(self.first(x))))


class Headless(nn.Module):
    """Has a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


# The model's parts.


def test_the_users_module_is_left_alone() -> None:
    module = net().eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x, y = data()
    task = task_from(module, nn.CrossEntropyLoss(), classes=3)
    descend(task.objective, task.init, [batch(x, y)] * 3, 0.5)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.training and all(p.grad is None for p in module.parameters())
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_the_task_is_left_alone_when_the_users_module_changes() -> None:
    module, (x, _) = net(), data()
    task = task_from(module, F.cross_entropy, classes=3)
    before = task.predict(task.init, x)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(task.predict(task.init, x), before)


def test_predictions_are_the_modules_own_and_the_head_makes_them_from_features() -> None:
    module, (x, _) = net(), data()
    task = task_from(module, F.cross_entropy, classes=3)
    seen = task.run(task.init, {"x": x})
    assert torch.allclose(seen.outputs, module(x))
    assert seen.features.shape == (6, 5) and task.features == 5
    assert torch.allclose(task.top(task.init, seen.features), seen.outputs)


def test_features_can_be_bent_on_their_way_to_the_head() -> None:
    task, (x, _) = task_from(net(), F.cross_entropy, classes=3), data()
    bent = task.run(task.init, {"x": x}, bend=lambda f: 2 * f)
    straight = task.run(task.init, {"x": x})
    assert torch.equal(bent.features, straight.features)
    assert torch.allclose(bent.outputs, task.top(task.init, 2 * straight.features))


def test_the_head_is_the_last_layer_with_parameters_or_the_one_that_is_named() -> None:
    task = task_from(net(), F.cross_entropy, classes=3)
    assert {k for k in task.init if task.head(k)} == {"2.weight", "2.bias"}
    named = task_from(net(), F.cross_entropy, head="0", classes=3)
    assert {k for k in named.init if named.head(k)} == {"0.weight", "0.bias"} and named.features == 4
    alone = task_from(nn.Linear(4, 3), F.cross_entropy, classes=3)
    assert all(map(alone.head, alone.init)) and alone.features == 4
    wide = task_from(nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten()), F.cross_entropy, classes=3)
    assert wide.features == 0


def test_norm_layers_are_known_with_their_statistics() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    task = task_from(module, F.cross_entropy, classes=2)
    assert {k.split(".")[0] for k in task.init if task.is_norm(k)} == {"1", "2", "3"}
    assert task.is_norm("1.running_mean") and "1.running_mean" not in task.parameters
    assert not any(map(task_from(net(), F.cross_entropy).is_norm, task.init))


@pytest.mark.parametrize("count", [2, 10])
def test_a_name_that_begins_like_another_is_not_it(count: int) -> None:
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)], nn.BatchNorm1d(4), nn.Linear(4, 2))
    task = task_from(module, F.cross_entropy, head="1", classes=2)
    assert {k.split(".")[0] for k in task.init if task.head(k)} == {"1"}


def test_tied_parameters_stay_tied() -> None:
    task, (x, y) = task_from(Tied().double(), F.cross_entropy, classes=4), data(classes=4)
    assert set(task.init) == {"first.weight", "first.bias", "norm.weight", "norm.bias"}
    module = Tied().double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(task.init[name])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    after = descend(task.objective, task.init, [batch(x, y)] * 3, 0.3)
    assert all(torch.allclose(after[k], p, atol=1e-12) for k, p in module.named_parameters())
    assert torch.allclose(task.predict(after, x), module(x), atol=1e-12)
    seen = task.run(after, {"x": x})
    assert torch.allclose(task.top(after, seen.features), seen.outputs, atol=1e-12)


def test_a_tied_head_cannot_stand_alone() -> None:
    task, (x, _) = task_from(Tied().double(), F.cross_entropy, classes=4), data()
    with pytest.raises(TaskError, match=r"'out' shares first\.weight"):
        task.top({}, x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: task_from(net(), F.cross_entropy, head="1000"), "no part named '1000'"),
        (lambda: task_from(nn.Sequential(nn.ReLU()), F.cross_entropy), "no parameters"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(make: Callable[[], Task], said: str) -> None:
    with pytest.raises(TaskError, match=said) as refusal:
        make()
    assert refusal.value.hint


def test_a_head_that_is_never_called_is_refused_when_the_model_runs() -> None:
    task, (x, _) = task_from(Headless().double(), F.cross_entropy, classes=3), data()
    with pytest.raises(TaskError, match="does not call its head 'spare'"):
        task.predict(task.init, x)


# Losses per example.

X, Y = data()
LOGITS = X[:, :3]
SMOOTHED = partial(F.cross_entropy, label_smoothing=0.1)


def own(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        F.cross_entropy,
        partial(F.cross_entropy, reduction="mean"),
        own,
    ],
)
def test_every_form_of_a_loss_is_one_number_per_example(loss: nn.Module | Callable[[Tensor, Tensor], Tensor]) -> None:
    assert torch.allclose(task_from(net(), loss, classes=3).losses(LOGITS, Y), own(LOGITS, Y))


def test_the_settings_of_a_loss_are_kept() -> None:
    expected = F.cross_entropy(LOGITS, Y, reduction="none", label_smoothing=0.1)
    for loss in (SMOOTHED, nn.CrossEntropyLoss(label_smoothing=0.1)):
        assert torch.allclose(task_from(net(), loss, classes=3).losses(LOGITS, Y), expected)
    module = nn.CrossEntropyLoss()
    task_from(net(), module)
    assert module.reduction == "mean"


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_logit_is_compared_with_a_class_of_zero_or_one(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    logit, y = X[:, 0], (Y > 0).long()
    expected = F.binary_cross_entropy_with_logits(logit, y.double(), reduction="none")
    assert torch.allclose(task_from(net(1), loss, classes=2).losses(logit.reshape(shape), y), expected)


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, nn.L1Loss(), nn.HuberLoss()])
def test_one_output_is_compared_with_its_own_target_and_not_with_everybodys(loss: Callable[..., Tensor]) -> None:
    y = torch.arange(6.0, dtype=F64)
    losses = task_from(net(1), loss).losses
    assert torch.allclose(losses(X[:, :1], y), losses(X[:, 0], y)) and losses(X[:, :1], y).shape == (6,)


def test_other_axes_of_a_loss_are_averaged() -> None:
    y = torch.zeros(6, 4, dtype=F64)
    assert torch.allclose(task_from(net(4), nn.MSELoss()).losses(X, y), (X**2).mean(1))
    images, labels = X.reshape(2, 3, 4), torch.randint(3, (2, 4), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        task_from(net(), F.cross_entropy, classes=3).losses(images, labels),
        F.cross_entropy(images, labels, reduction="none").mean(1),
    )


@pytest.mark.parametrize("loss", [lambda outputs, y: F.cross_entropy(outputs, y), lambda outputs, y: own(outputs, y).sum()])
def test_a_loss_that_is_one_number_for_the_batch_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    task = task_from(net(), loss, classes=3)
    with pytest.raises(TaskError, match="one per example") as refusal:
        descend(task.objective, task.init, [batch(X, Y)], 0.1)
    assert "reduction='none'" in refusal.value.hint


# Sums.


def test_class_sums_count_by_class() -> None:
    outputs, y = torch.tensor([[2.0, 1, 0], [0, 3, 1], [0, 1, 5], [4, 0, 0]]), torch.tensor([0, 1, 1, 2])
    sums = class_sums(outputs, y, classes=3, losses=own)
    assert {k: v.tolist() for k, v in sums.items() if k != "loss"} == {
        "count": 4.0,
        "correct": 2.0,
        "count_by_class": [1.0, 2.0, 1.0],
        "correct_by_class": [1.0, 1.0, 0.0],
    }
    assert torch.isclose(sums["loss"], own(outputs, y).sum().double())


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_class_sums_of_one_logit_cut_at_zero(shape: tuple[int, ...]) -> None:
    logits, y = torch.tensor([-1.0, 2.0, 0.5, -0.1]).reshape(shape), torch.tensor([0, 1, 0, 1])
    sums = class_sums(logits, y, classes=2, losses=lambda o, y: o.flatten() * 0)
    assert sums["correct"] == 2 and sums["correct_by_class"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_value_sums_give_all_that_r2_and_the_errors_need(shape: tuple[int, ...]) -> None:
    outputs, y = torch.tensor([1.0, 2.0, 4.0]).reshape(shape), torch.tensor([1.0, 3.0, 2.0])
    sums = value_sums(outputs, y, losses=lambda o, y: (o.flatten() - y) ** 2)
    assert {k: float(v) for k, v in sums.items()} == {
        "count": 3, "loss": 5, "squared_error": 5, "absolute_error": 3, "target": 6, "target_squared": 14,
    }  # fmt: skip


def test_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    whole = class_sums(LOGITS, Y, classes=3, losses=own)
    parts = [class_sums(LOGITS[s], Y[s], classes=3, losses=own) for s in (slice(2), slice(2, None), slice(0))]
    assert all(torch.allclose(sum(p[k] for p in parts), v) for k, v in whole.items())


def test_a_tasks_own_measure_is_used() -> None:
    task = task_from(net(), F.cross_entropy, classes=3, measure=lambda outputs, y: {"count": torch.tensor(float(len(y)))})
    assert set(task.measure(LOGITS, Y)) == {"count"}


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "fedadam", "ditto", "per-fedavg", "ifca", "fedper"])
@pytest.mark.parametrize("kind", [LoopEngine, VectorEngine])
def test_a_frozen_parameter_stays_as_it_is_and_the_others_train_as_torch_trains_them(name: str, kind: type[LoopEngine]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    module[0].weight.requires_grad_(False)
    task = task_from(module, nn.MSELoss())
    x = torch.randn(12, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True)
    rows = {c: {"train": r, "validation": r[:1], "test": r[:0]} for c, r in zip("abc", torch.arange(12).split(4), strict=True)}
    feed, work = Feed(x=x, y=y, rows=rows), Work(batch_size=4, steps=1)
    algorithm = algorithm_entry(name).build(task, lr=0.1)
    engine = kind(algorithm, feed, work)
    *_, last = train(algorithm, engine, list(rows), rounds=1)
    shared = algorithm.broadcast(last.server)
    states = [algorithm.personalize(shared, engine.adapted(shared, c)) for c in rows]
    for state in states:
        assert torch.equal(state["0.weight"], task.init["0.weight"])
        assert not torch.equal(state["0.bias"], task.init["0.bias"])
    if name == "fedavg":  # the oracle: one step of torch's own SGD on each client, the mean of which is one on everything
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
        for key, value in module.named_parameters():
            torch.testing.assert_close(states[0][key], value.detach())


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(TaskError, match="frozen"):
        task_from(nn.Linear(2, 1).requires_grad_(False), nn.MSELoss())
