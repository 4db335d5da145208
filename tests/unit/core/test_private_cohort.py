"""DP-SGD by ghost norms, for a cohort: what the definition gives one client at a time, and Opacus's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from freehold.core import Batch, Objective, Privacy, State, descend, executing, gradient, private, proximal, task_from, tilted
from freehold.core.cohort import explain
from freehold.core.cohort.passes import Pass
from freehold.core.cohort.private import Clipping
from freehold.errors import NotPrivate
from tests.problems import distance
from tests.unit.core.test_opacus import GOLDEN, THEIRS, steps, task

CLIENTS, SIZE, STEPS, F64 = 3, 5, 3, torch.float64


class Words(nn.Module):
    """An embedding that is read twice: by its rows, and as the last layer's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x[:, :6].abs() * 3).long().clamp(max=6)
        return F.linear(self.inner(self.table(ids)).mean(1), self.table.weight)


class Lookup(nn.Module):
    """Few rows of a large table, one that is padding, and one read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(40, 5, padding_idx=2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x[:, [0, 1, 2, 0]].abs() * 2).long().clamp(max=39)
        return self.last(self.table(ids).tanh().sum(1))


class Frames(nn.Module):
    """A convolution over more rows than there are examples."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.last = nn.Conv1d(1, 2, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.look(x.reshape(-1, 1, 3)).tanh().reshape(len(x), -1))


class Twice(nn.Module):
    """One layer used at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.again(self.first(x).tanh()).tanh()))


class Attention(nn.Module):
    """Its projections go into one function as arguments, not through a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.view(-1, 3, 2)
        return self.last(self.mix(seen, seen, seen, need_weights=False)[0].flatten(1))


class Scaled(nn.Module):
    """A matrix that a Linear reads, and a product too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) + (x @ self.inner.weight).tanh())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "no-bias": lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)),
    "sequence": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 5), nn.GELU(), nn.Flatten(), nn.Linear(15, 3)),
    "long-sequence": lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Linear(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
    "norms": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    "conv-2d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, (2, 1), stride=(1, 2)),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "conv-groups": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(8, 3)),
    "conv-same": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 3, padding="same"), nn.Flatten(), nn.Linear(6, 3)
    ),
    "conv-wide": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Conv1d(3, 9, 2), nn.Flatten(), nn.Linear(9, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)),
    "words": Words,
    "lookup": Lookup,
    "frames": Frames,
    "twice": Twice,
    "attention": Attention,
    "scaled": Scaled,
}


def objective_of(name: str, noise: float) -> tuple[Objective, State]:
    torch.manual_seed(4)
    made = task_from(NETWORKS[name]().double(), F.cross_entropy, classes=3)
    made = private(made, Privacy(max_norm=0.3, noise_multiplier=noise, expected_batch=4))
    return made.objective, made.init


def batches_of(client: int, live: int = STEPS) -> list[Batch]:
    """Steps of Poisson batches of up to SIZE examples, padded; those after `live` are padding."""
    rng = torch.Generator().manual_seed(client)
    out: list[Batch] = []
    for s in range(STEPS):
        real = torch.rand(SIZE, generator=rng) < 0.7
        real = real & (torch.tensor(s) != 1) if client == 0 else real  # one step of nobody
        x = torch.randn(SIZE, 6, generator=rng, dtype=F64) * 3
        y = torch.randint(3, (SIZE,), generator=rng)
        out.append(
            {
                "x": x,
                "y": y,
                "real": real & torch.tensor(s < live),
                "live": torch.tensor(s < live),
                "key": torch.tensor(100 * client + s),
            }
        )
    return out


def stacked(rows: list[list[Batch]]) -> list[Batch]:
    return [{k: torch.stack([one[s][k] for one in rows]) for k in rows[0][s]} for s in range(STEPS)]


COPIED = {"attention": {"mix.in_proj_weight", "mix.out_proj.weight"}, "conv-groups": {"1.weight"}, "conv-same": {"1.weight"}}
COPIED |= {"scaled": {"inner.weight"}}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", NETWORKS)
def test_only_weights_that_have_no_pairs_are_copied_for_each_example(name: str) -> None:
    objective, start = objective_of(name, 0.0)
    assert objective.private is not None
    clipping = Clipping(objective, objective.private)
    batch = stacked([batches_of(c) for c in range(CLIENTS)])[0]
    params = {k: v.expand(CLIENTS, *v.shape) for k, v in start.items()}
    clipping.gradients(Pass(objective, params, {}, batch, batch["real"].double()), 1.0)
    assert clipping.built == COPIED.get(name, set())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap
@pytest.mark.parametrize("noise", [0.0, 0.8])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cohort_goes_where_each_client_goes_alone(name: str, noise: float) -> None:
    objective, start = objective_of(name, noise)
    rows = [batches_of(0), batches_of(1), batches_of(2, live=2)]
    with executing("stacked"):
        found = vmap(lambda mine: dict(descend(objective, start, mine, 0.4)))(stacked(rows))
    for i, mine in enumerate(rows):
        alone = descend(objective, start, mine, 0.4)
        assert distance({k: v[i] for k, v in found.items()}, alone) < 1e-12 < distance(alone, start)


@pytest.mark.parametrize(
    ("name", "how"), [("mlp", "replayed"), ("dropout", "replayed"), ("twice", "replayed"), ("lookup", "taped")]
)
def test_a_plan_is_replayed_only_where_linears_alone_read_the_weights_that_are_not_built(name: str, how: str) -> None:
    objective, start = objective_of(name, 0.0)
    with executing("stacked"):
        vmap(lambda mine: dict(descend(objective, start, mine, 0.4)))(stacked([batches_of(c) for c in range(CLIENTS)]))
    assert [finding.how for finding in explain(objective)] == [how]


@pytest.mark.parametrize("executor", ["stacked", "lowrank"])
def test_rates_pulls_and_slopes_of_a_client_act_beside_the_clipped_gradient(executor: str) -> None:
    objective, start = objective_of("mlp", 0.5)
    rates = torch.tensor([0.1, 0.4, 0.2], dtype=F64)
    anchors = {k: torch.stack([v + 0.1 * i for i in range(CLIENTS)]) for k, v in start.items()}
    rows = [batches_of(c) for c in range(CLIENTS)]

    def run(anchor: State, rate: Tensor, mine: list[Batch]) -> State:
        bent = tilted(proximal(objective, anchor, 0.7), {"0.weight": anchor["0.weight"] * 0.3})
        return dict(descend(bent, start, mine, rate))

    with executing("stacked" if executor == "stacked" else "lowrank"):
        found = vmap(run)(anchors, rates, stacked(rows))
    for i in range(CLIENTS):
        alone = run({k: v[i] for k, v in anchors.items()}, rates[i], rows[i])
        assert distance({k: v[i] for k, v in found.items()}, alone) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "words", "conv"])
def test_one_gradient_of_a_cohort(name: str) -> None:
    objective, start = objective_of(name, 0.5)
    batch = stacked([batches_of(c) for c in range(CLIENTS)])[0]
    with executing("stacked"):
        found, _ = vmap(lambda mine: gradient(objective, start, mine))(batch)
    for i in range(CLIENTS):
        alone, _ = gradient(objective, start, {k: v[i] for k, v in batch.items()})
        assert distance({k: v[i] for k, v in found.items()}, alone) < 1e-12


def test_three_steps_end_where_opacus_ends() -> None:
    ours = task()
    both = [{k: torch.stack([v, v]) for k, v in batch.items()} for batch in steps(9)]
    with executing("stacked"):
        found = vmap(lambda rows: dict(descend(ours.objective, ours.init, rows, GOLDEN["lr"])))(both)
    assert all(distance({k: v[i] for k, v in found.items()}, THEIRS) < 1e-6 for i in range(2))


def test_an_example_that_is_not_finite_counts_nothing() -> None:
    objective, start = objective_of("mlp", 0.0)
    rows = [batches_of(c) for c in range(CLIENTS)]
    for bad, broken in ((float("nan"), 1), (float("inf"), 2)):
        batch = dict(rows[broken][0])
        place = int(batch["real"].nonzero()[0])
        batch["x"] = batch["x"].index_fill(0, torch.tensor([place]), bad)
        rows[broken][0] = batch
    with executing("stacked"):
        found = vmap(lambda mine: dict(descend(objective, start, mine, 0.4)))(stacked(rows))
    for i, mine in enumerate(rows):
        alone = descend(objective, start, mine, 0.4)
        assert all(bool(v.isfinite().all()) for v in alone.values())
        assert distance({k: v[i] for k, v in found.items()}, alone) < 1e-12


def test_a_step_moves_no_further_than_the_clip_allows() -> None:
    objective, start = objective_of("twice", 0.0)
    privacy = objective.private
    assert privacy is not None
    rows = [batches_of(c)[:1] for c in range(CLIENTS)]
    both = [{k: torch.stack([one[0][k] for one in rows]) for k in rows[0][0]}]
    with executing("stacked"):
        found = vmap(lambda mine: dict(descend(objective, start, mine, 1.0)))(both)
    for i, mine in enumerate(rows):
        moved = torch.stack([(v[i] - start[k]).square().sum() for k, v in found.items()]).sum().sqrt()
        most = privacy.max_norm * int(mine[0]["real"].sum()) / privacy.expected_batch
        assert 0 < float(moved) <= most + 1e-12


def test_noise_of_the_callers_own_is_given_each_gradient() -> None:
    objective, start = objective_of("mlp", 1.0)
    asked: list[int] = []

    def noised(each: State, counts: Tensor, max_norm: float, noise_multiplier: float) -> State:
        asked.append(len(counts))
        return {k: g.sum(0) for k, g in each.items()}

    privacy = objective.private
    assert privacy is not None
    own = replace(objective, private=replace(privacy, noised_sum=noised))
    with executing("stacked"):
        vmap(lambda mine: dict(descend(own, start, mine, 0.1)))(stacked([batches_of(c) for c in range(CLIENTS)]))
    assert asked == [SIZE] * STEPS


def test_batchnorm_is_refused() -> None:
    torch.manual_seed(0)
    made = task_from(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double(), F.cross_entropy, classes=3)
    objective = private(made, Privacy(max_norm=1, noise_multiplier=0, expected_batch=4)).objective
    with executing("stacked"), pytest.raises(NotPrivate, match="BatchNorm"):
        vmap(lambda mine: dict(descend(objective, made.init, mine, 0.1)))(stacked([batches_of(c) for c in range(CLIENTS)]))
