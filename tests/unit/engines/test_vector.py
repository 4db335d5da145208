"""The vector engine: which modules it runs, what it refuses with a remedy, and that the loop runs those too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freehold.core import Task, Tree, algorithm_entry, task_from, train
from freehold.engines import Feed, LoopEngine, VectorEngine, Work
from freehold.errors import NotBatchable
from tests.problems import CLASSES, CLIENTS, distance, feed_for

WORK = Work(batch_size=4, epochs=1)
SLOWLY = pytest.mark.filterwarnings("ignore:There is a performance drop")
"""Torch runs some operations one client after the other under vmap, and says so."""


class Centered(nn.Module):
    """Mixes the examples of a batch, in a way that core does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.out(torch.tanh(hidden - hidden.mean(0)))


class Sized(Centered):
    """Depends on how many examples there are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(x)) * len(x))


class Branching(Centered):
    """Looks at a value to decide what to do."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return self.out(hidden if bool(hidden.sum() > 0) else -hidden)


class Attending(nn.Module):
    """A transformer layer over [B, 3, 2]."""

    def __init__(self, inside: float, outside: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, dim_feedforward=4, dropout=outside, batch_first=True)
        self.layer.self_attn.dropout = inside
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.reshape(-1, 3, 2)).flatten(1))


class Reading(nn.Module):
    """A recurrent network of torch's own over [B, 3, 2]."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body, self.out = kind(2, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x.reshape(-1, 3, 2))[0][:, -1])


class Celled(nn.Module):
    """A GRU cell, unrolled by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(2, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for at in range(3):
            state = self.cell(x[:, 2 * at : 2 * at + 2], state)
        return self.out(state)


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.RReLU(), nn.Linear(5, CLASSES))


def instances() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (3, 2)), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(6, CLASSES))


def groups() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(8, CLASSES))


def task_of(make: Callable[[], nn.Module]) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task_from(make().double(), F.cross_entropy, classes=CLASSES)


def vmapped(*args: Any, **more: Any) -> VectorEngine:
    return VectorEngine(*args, **more, executor="vmap")


def trained(engine: Callable[..., LoopEngine], task: Task, clients: tuple[str, ...] = CLIENTS[:4]) -> Tree:
    algorithm = algorithm_entry("fedavg-finetuned").build(task)
    runner = engine(algorithm, feed_for(), WORK)
    *_, last = train(algorithm, runner, clients, rounds=2)
    return {"server": last.server, "said": dict(runner.predict(last.server, clients, ["test"]))}


@SLOWLY
@pytest.mark.parametrize(
    "make",
    [Celled, lambda: Attending(0.0), lambda: Attending(0.0, 0.3), instances, groups, lambda: nn.Linear(6, CLASSES)],
    ids=["gru cell", "attention", "attention and dropout", "instance norm", "group norm", "linear"],
)
def test_modules_that_keep_examples_apart_agree_with_the_loop(make: Callable[[], nn.Module]) -> None:
    task = task_of(make)
    assert distance(trained(LoopEngine, task), trained(vmapped, task)) < 1e-9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Centered, "mixes the examples of a batch"),
        (Sized, "mixes the examples of a batch"),
        (Branching, "data-dependent control flow"),
        (lambda: Attending(0.5), "draws random numbers of its own"),
        (noisy, "draws random numbers of its own"),
        (lambda: Reading(nn.GRU), "cannot run for many clients at once"),
        (lambda: Reading(nn.LSTM), "cannot run for many clients at once"),
    ],
    ids=["centered", "sized", "branching", "attention dropout", "rrelu", "gru", "lstm"],
)
def test_what_cannot_be_batched_is_refused_with_a_remedy_and_the_loop_runs_it(make: Callable[[], nn.Module], said: str) -> None:
    task = task_of(make)
    with pytest.raises(NotBatchable, match=said) as refusal:
        trained(vmapped, task)
    assert "loop" in refusal.value.hint
    first, second = trained(LoopEngine, task), trained(LoopEngine, task)
    assert distance(first, trained(VectorEngine, task)) < 1e-9, "unless it may choose"
    assert distance(first, second) == 0, "and it is deterministic there"
    assert distance(first["server"], dict(task.init)) > 1e-6


def test_attention_that_drops_out_inside_is_told_what_to_do_instead() -> None:
    with pytest.raises(NotBatchable) as refusal:
        trained(vmapped, task_of(lambda: Attending(0.5)))
    assert "nn.Dropout after it" in refusal.value.hint


class CenteredWords(nn.Module):
    """Mixes the examples of a batch of integers [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x).mean(1)
        return self.out(torch.tanh(hidden - hidden.mean(0)))


@pytest.mark.parametrize("work", [Work(batch_size=4, epochs=1), Work(batch_size=1, steps=20, poisson=True)])
def test_mixing_is_seen_also_where_the_first_batch_has_one_example_or_none(work: Work) -> None:
    feed = feed_for("words")
    rows = {"one": {s: feed.rows["c0"][s][:1] for s in ("train", "validation", "test")}, "c7": feed.rows["c7"]}
    algorithm = algorithm_entry("fedavg").build(task_of(CenteredWords))
    engine = VectorEngine(algorithm, Feed(x=feed.x, y=feed.y, rows=rows), work, executor="vmap")
    with pytest.raises(NotBatchable, match="mixes the examples of a batch"):
        next(train(algorithm, engine, list(rows), rounds=1))


@pytest.mark.parametrize("chunk", [1, 3])
def test_predictions_are_in_the_order_that_was_asked_for_and_without_padding(chunk: int) -> None:
    task = task_of(groups)
    algorithm, clients = algorithm_entry("fedavg").build(task), ["c6", "c1", "c7", "c0"]
    loop, vector = LoopEngine(algorithm, feed_for(), WORK), VectorEngine(algorithm, feed_for(), WORK, chunk=chunk)
    found = [e.predict(task.init, clients, ["train", "validation", "test"]) for e in (loop, vector)]
    assert list(found[1]) == clients and distance(*map(dict, found)) < 1e-12
    assert found[1]["c1"]["validation"].shape == (0, CLASSES)


def test_a_client_without_a_test_row_has_sums_of_zero() -> None:
    feed = feed_for()
    rows = {c: {**feed.rows[c], "test": feed.rows[c]["test"][:0]} for c in CLIENTS[:2]}
    algorithm = algorithm_entry("ditto").build(task_of(groups))
    for engine in (LoopEngine, VectorEngine):
        runner = engine(algorithm, Feed(x=feed.x, y=feed.y, rows=rows), WORK)
        sums = runner.evaluate(algorithm.init(), CLIENTS[:2], "test")
        assert all(float(t.sum()) == 0 for s in sums.values() for t in s.values())
