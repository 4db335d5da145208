"""Networks of many kinds and cohorts of ragged clients, for tests of the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freehold.core import State, Steps, Task, Tree, stack, task_from
from freehold.core.cohort import dense
from freehold.engines.feed import Feed, Work
from tests.padding import pad

WIDTH, HIDDEN, CLASSES = 20, 16, 3
EQUAL, UNEQUAL = (8, 8, 8, 8), (13, 8, 6, 3)


class Tied(nn.Module):
    """A weight that two layers share, and that the loss sees by itself as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        again = F.linear(torch.tanh(self.a(x)), self.a.weight)
        return self.b(torch.tanh(again + (self.a.weight**2).sum(1)))


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Gated(nn.Module):
    """A GRU over 5 steps of 4 values."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x.view(len(x), 5, 4))[0][:, -1])


class Embedded(nn.Module):
    """Embeddings of what the first four values are rounded to, twice the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 5), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x[:, :4].round().clamp(-4, 4).long() + 4).flatten(1))


class Rows(nn.Module):
    """Matrix factorization: a user's vector, items' vectors and biases; x holds an item."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.items, self.bias, self.out = (
            nn.Parameter(torch.randn(4)),
            nn.Embedding(9, 4),
            nn.Embedding(9, 1),
            nn.Linear(1, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        item = x[:, 0].round().clamp(-4, 4).long() + 4
        return self.out((self.items(item) * self.user).sum(-1, keepdim=True) + self.bias(item))


def _conv() -> nn.Module:
    convs = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh())
    return nn.Sequential(nn.Unflatten(1, (1, 4, 5)), *convs, nn.Flatten(), nn.Linear(24, CLASSES))


def _thick() -> nn.Module:
    convs = (nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 4, 2, stride=2), nn.AvgPool2d(2))
    line = (nn.Flatten(2), nn.Conv1d(4, 16, 1, bias=False), nn.Tanh(), nn.Conv1d(16, 2, 1), nn.Flatten())
    return nn.Sequential(nn.Unflatten(1, (1, 4, 5)), *convs, *line, nn.Linear(2, CLASSES))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(WIDTH, CLASSES),
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3)),
    "bare": lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN, bias=False), nn.GELU(), nn.Linear(HIDDEN, CLASSES, bias=False)),
    "batchnorm": lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, CLASSES)),
    "layernorm": lambda: nn.Sequential(
        nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 3)
    ),
    "conv": _conv,
    "thick": _thick,
    "sequence": lambda: nn.Sequential(
        nn.Unflatten(1, (5, 4)), nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 8), nn.Flatten(), nn.Linear(40, CLASSES)
    ),
    "tied": Tied,
    "twice": Twice,
    "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Dropout(0.3), nn.LeakyReLU(), nn.Linear(HIDDEN, CLASSES)),
    "embedded": Embedded,
    "rows": Rows,
    "gated": Gated,
}


def task_of(network: str, dtype: torch.dtype = torch.float64) -> Task:
    """A classification task with a network of that name."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return task_from(NETWORKS[network]().to(dtype), nn.CrossEntropyLoss(), classes=CLASSES)


def each_of(sizes: Sequence[int], *, epochs: int = 2, size: int = 4, dtype: torch.dtype = torch.float64) -> list[Steps]:
    """The steps of clients of these sizes, one by one."""
    rng = torch.Generator().manual_seed(5)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    x = torch.randn(ends[-1], WIDTH, generator=rng, dtype=torch.float64).to(dtype)
    y = torch.randint(CLASSES, (ends[-1],), generator=rng)
    rows = {f"c{i}": {"train": torch.arange(end - n, end)} for i, (n, end) in enumerate(zip(sizes, ends, strict=True))}
    feed, work = Feed(x=x, y=y, rows=rows), Work(batch_size=size, epochs=epochs)
    return [replace(feed.steps(c, 0, work), trim=False) for c in rows]


def padded(each: Sequence[Steps]) -> Steps:
    """All of them, with a leading client axis."""
    return pad(each)


def stacked(trees: Sequence[Tree]) -> Tree:
    """One tree with a leading client axis, all plain tensors."""
    return stack([dense(t) for t in trees])


def spread(state: State, clients: int) -> State:
    """A state per client, each a little different."""
    return {k: torch.stack([v * (1 + 0.1 * i) if v.is_floating_point() else v for i in range(clients)]) for k, v in state.items()}


def common(state: State, clients: int) -> State:
    """One state for all clients: a view per client, no copy."""
    return {k: v.expand(clients, *v.shape) for k, v in state.items()}
