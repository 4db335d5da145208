"""Models that tempt a rule to give another gradient than the definition: each falls back, or gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from freehold.core import Batch, Executor, Privacy, descend, executing, private, task_from
from tests.problems import distance

F64 = torch.float64
CLIENTS, SIZE, STEPS = 3, 4, 3


class Scaled(nn.Module):
    """Divides by the norm of a weight, without a gradient of it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(60, 50), nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.wide(x) / self.wide.weight.detach().norm()))


class Masked(nn.Module):
    """A mask of a table's rows, without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(400, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table((x[:, :3].abs() * 50).long().clamp(max=399)).mean(1)
        return self.out(rows * self.table.weight.detach().mean().exp())


class Quiet(nn.Module):
    """A part without gradients, behind a layer that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(60, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(self.inner(x))
        return self.out(hidden)


class _Reversed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return -0.5 * g


class Reversed(nn.Module):
    """A backward pass of its own, behind a layer that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(60, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_Reversed.apply(torch.tanh(self.inner(x))))


class InPlace(nn.Module):
    """Changes its input before it reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(60, 50), nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone() if x.requires_grad else x
        x.div_(7)
        return self.out(torch.tanh(self.wide(x)))


class Keywords(nn.Module):
    """Calls by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 4), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.inner(x.view(-1, 10, 6)).transpose(dim0=1, dim1=2)
        return self.out(F.relu(input=torch.add(input=seen, other=0.5)).flatten(start_dim=1))


MODELS: list[Callable[[], nn.Module]] = [Scaled, Masked, Quiet, Reversed, Keywords]


def batches_of(client: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(client)
    real, live = torch.ones(SIZE, dtype=torch.bool), torch.tensor(True)
    return [
        {
            "x": torch.randn(SIZE, 60, generator=rng, dtype=F64),
            "y": torch.randint(3, (SIZE,), generator=rng),
            "real": real,
            "live": live,
            "key": torch.tensor(s),
        }
        for s in range(STEPS)
    ]


def stacked(rows: list[list[Batch]]) -> list[Batch]:
    return [{k: torch.stack([one[s][k] for one in rows]) for k in rows[0][s]} for s in range(STEPS)]


@pytest.mark.parametrize("executor", ["stacked", "lowrank"])
@pytest.mark.parametrize("model", MODELS)
def test_a_cohort_goes_where_the_definition_goes(model: Callable[[], nn.Module], executor: Executor) -> None:
    torch.manual_seed(1)
    task = task_from(model().double(), F.cross_entropy, classes=3)
    rows = [batches_of(c) for c in range(CLIENTS)]
    for _ in range(2):  # what was found out in the first is used in the second
        with executing(executor):
            found = vmap(lambda mine: dict(descend(task.objective, task.init, mine, 0.5)))(stacked(rows))
        for i, mine in enumerate(rows):
            alone = descend(task.objective, task.init, mine, 0.5)
            assert distance({k: v[i] for k, v in found.items()}, alone) < 1e-12 < distance(alone, task.init)


def test_a_pass_that_counts_its_calls_is_not_replayed() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.calls = nn.Linear(60, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.out(x) * (1 + self.calls)

    from freehold.core.cohort import explain

    task = task_from(Counting().double(), F.cross_entropy, classes=3)
    with executing("stacked"):
        vmap(lambda mine: dict(descend(task.objective, task.init, mine, 0.5)))(stacked([batches_of(c) for c in range(2)]))
    (finding,) = explain(task.objective)
    assert finding.how != "replayed" and "a second one was another" in finding.why


@pytest.mark.parametrize("executor", ["stacked", "lowrank"])
def test_labels_that_are_ignored_may_lie_beyond_the_classes(executor: Executor) -> None:
    task = task_from(nn.Linear(60, 3).double(), nn.CrossEntropyLoss(ignore_index=255), classes=3)
    rows = [batches_of(c) for c in range(CLIENTS)]
    rows[1][2] = {**rows[1][2], "y": torch.tensor([255, 1, 255, 0])}
    with executing(executor):
        found = vmap(lambda mine: dict(descend(task.objective, task.init, mine, 0.5)))(stacked(rows))
    for i, mine in enumerate(rows):
        assert distance({k: v[i] for k, v in found.items()}, descend(task.objective, task.init, mine, 0.5)) < 1e-12


def test_an_example_whose_parts_cancel_in_single_precision_is_clipped_by_its_true_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.inner(x.view(-1, 2, 8))
            return (seen[:, 0] - seen[:, 1]).sum(1, keepdim=True)

    privacy = Privacy(max_norm=0.1, noise_multiplier=0.0, expected_batch=1)
    task = private(task_from(Twice(), F.mse_loss), privacy)
    base = 1e5 * torch.ones(8)
    x = torch.cat([base, base + torch.arange(8.0) / 2])[None].expand(2, 1, 16).contiguous()
    batch = {
        "x": x,
        "y": torch.zeros(2, 1),
        "real": torch.ones(2, 1, dtype=torch.bool),
        "live": torch.ones(2, dtype=torch.bool),
        "key": torch.zeros(2, dtype=torch.int64),
    }
    with executing("stacked"):
        found = vmap(lambda b: dict(descend(task.objective, task.init, [b], 1.0)))(batch)
    for i in range(2):
        moved = found["inner.weight"][i] - task.init["inner.weight"]
        assert 0 < float(moved.norm()) <= 0.1 * 1.01
