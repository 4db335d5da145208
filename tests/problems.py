"""Small learning problems in float64 that tests share: modules of each kind, and clients of ragged sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freehold.core import Task, Tree, flatten, task_from, tree_map
from freehold.engines import Feed

SIZES = (5, 2, 9, 12, 13, 7, 3, 17, 4, 8, 21, 6)
"""Training examples of each client. In batches of 4 the last one often holds a single example; one client has two examples."""
CLIENTS = tuple(f"c{i}" for i in range(len(SIZES)))
WIDTH, CLASSES = 6, 3


class Recurrent(nn.Module):
    """A recurrent cell unrolled over [B, 3, 2] and a linear head for one number [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(2, 4)
        self.back = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for at in range(x.shape[1]):
            state = torch.tanh(self.into(x[:, at]) + self.back(state))
        return self.out(state)


class Words(nn.Module):
    """An embedding of six words, LayerNorm, their mean, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.norm = nn.LayerNorm(5)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(self.embedding(x)).mean(1)))


def binary(outputs: Tensor, y: Tensor) -> Tensor:
    """Logistic loss of one logit [B, 1] against classes {0, 1}."""
    return F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype), reduction="none")


def plain() -> Task:
    """An MLP without norms or randomness."""
    return _task(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)))


def mixed() -> Task:
    """BatchNorm and dropout; every algorithm of ours works on it."""
    return _task(
        lambda: nn.Sequential(
            nn.Linear(WIDTH, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(8, 5),
            nn.Tanh(),
            nn.Linear(5, CLASSES),
        )
    )


def conv() -> Task:
    """Convolutions, BatchNorm2d and channel dropout on [B, 1, 6, 6]."""
    return _task(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout2d(0.2), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)
        )
    )


def words() -> Task:
    """An embedding with LayerNorm on integer inputs [B, 6]."""
    return _task(Words)


def recurrent() -> Task:
    """Regression with a recurrent cell; outputs are [B, 1], targets [B]."""
    return _task(Recurrent, nn.MSELoss(), classes=0)


def linear() -> Task:
    """Logistic regression: a model that is all head."""
    return _task(lambda: nn.Linear(WIDTH, 1), binary, classes=2)


PROBLEMS: Mapping[str, Callable[[], Task]] = {f.__name__: f for f in (plain, mixed, conv, words, recurrent, linear)}


def _task(
    module: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor] | None = None, *, classes: int = CLASSES
) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return task_from(module().double(), loss or nn.CrossEntropyLoss(), classes=classes)


@cache
def feed_for(problem: str = "plain", *, clients: int = len(CLIENTS), seed: int = 3) -> Feed:
    """Clients whose labels follow three concepts; the second has no validation examples."""
    rng = torch.Generator().manual_seed(11)
    rows, start = {}, 0
    for i, train in enumerate(SIZES[:clients]):
        cuts = [train, i % 5 if i != 1 else 0, 3]
        parts = torch.arange(start, start + sum(cuts)).split(cuts)
        rows[CLIENTS[i]] = dict(zip(("train", "validation", "test"), parts, strict=True))
        start += sum(cuts)
    z = torch.randn(start, WIDTH, generator=rng, dtype=torch.float64)
    concept = torch.cat([torch.full((sum(map(len, r.values())),), i % 3) for i, r in enumerate(rows.values())])
    label = ((z @ torch.randn(WIDTH, CLASSES, generator=rng, dtype=torch.float64)).argmax(1) + concept) % CLASSES
    x = {
        "conv": torch.einsum("ti,tj->tij", z, z)[:, None],
        "words": z.round().clamp(-3, 3).long() + 3,
        "recurrent": z.reshape(-1, 3, 2),
    }
    y = {"recurrent": z.sin().sum(1) + concept, "linear": (label > 0).long()}
    return Feed(x=x.get(problem, z), y=y.get(problem, label), rows=rows, seed=seed)


def distance(a: Tree, b: Tree) -> float:
    """The largest difference between two trees, which must have the same names, shapes and dtypes."""
    first, second = flatten(a), flatten(b)
    assert shapes(a) == shapes(b)
    gaps = [(x.double() - second[name].double()).abs() for name, x in first.items() if x.numel()]
    assert not any(gap.isnan().any() for gap in gaps)
    return max((float(gap.max()) for gap in gaps), default=0.0)


def shapes(tree: Tree) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What a spec says of a tree: shape and dtype by name."""
    return {name: (tuple(t.shape), t.dtype) for name, t in flatten(tree).items()}


def same(a: Tree, b: Tree) -> bool:
    """Whether two trees are equal bit for bit; NaN equals NaN."""
    first, second = flatten(a), flatten(b)
    return shapes(a) == shapes(b) and all(
        bool((x.eq(y) | (x.ne(x) & y.ne(y))).all()) for x, y in ((first[k], second[k]) for k in first)
    )


def copied(tree: Tree) -> Tree:
    """A copy that shares no memory."""
    return tree_map(lambda t: t.clone(), tree)
