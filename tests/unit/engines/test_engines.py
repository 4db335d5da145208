"""Engines: what a failed round leaves, resuming, what a model may do with a batch, and what the feed draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from freehold.core import Task, Tree, algorithm_entry, task_from, train
from freehold.engines import Feed, LoopEngine, VectorEngine, Work
from freehold.engines.feed import pad
from freehold.errors import Diverged, NotBatchable
from tests.problems import CLASSES, CLIENTS, SIZES, WIDTH, copied, distance, feed_for, plain, same

ENGINES = (LoopEngine, VectorEngine)
WORK = Work(batch_size=4, epochs=1)
CONTINUING = Work(batch_size=4, steps=3, continuing=True)
COHORT = 5


class Centered(nn.Module):
    """Takes the mean of the batch away, which the engine cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        return self.out(torch.tanh(h - h.mean(0)))


class Attentive(nn.Module):
    """Attention whose own dropout draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(2, 1, dropout=0.5, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(len(x), -1, 2)
        return self.out(self.attention(h, h, h, need_weights=False)[0].flatten(1))


def task_of(kind: type[nn.Module]) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return task_from(kind().double(), nn.CrossEntropyLoss(), classes=CLASSES)


def ditto_on(kind: type[LoopEngine], *, lr: float = 0.1, feed: Feed | None = None, work: Work = CONTINUING) -> LoopEngine:
    return kind(algorithm_entry("ditto").build(plain(), lr=lr, lam=0.5), feed or feed_for(), work)


def kept(engine: LoopEngine) -> Tree:
    return copied(engine.store.committed())


def trained(engine: LoopEngine, rounds: int) -> Tree:
    *_, last = train(engine.algorithm, engine, CLIENTS, rounds=rounds, cohort=COHORT, seed=1)
    return last.server


@pytest.mark.parametrize("kind", ENGINES)
def test_a_round_that_diverges_names_client_and_round_and_keeps_the_round_before(kind: type[LoopEngine]) -> None:
    good = ditto_on(kind)
    server = trained(good, 2)
    before = kept(good)
    assert before
    wild = ditto_on(kind, lr=1e30, work=Work(batch_size=4, steps=12))  # lr * lam to the 12th power exceeds float64
    wild.store.restore(before)
    with pytest.raises(Diverged, match=r"Round 2, client c\d+: .* ditto") as caught:
        list(train(wild.algorithm, wild, CLIENTS, rounds=3, cohort=COHORT, seed=1, server=server, start=2))
    assert caught.value.hint
    assert same(wild.store.committed(), before)
    wild.settle(counted=True)  # and nothing is left pending
    assert same(wild.store.committed(), before)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_client_whose_data_is_wrong_is_the_one_that_is_named(kind: type[LoopEngine]) -> None:
    feed = feed_for()
    x = feed.x.clone()
    x[feed.rows["c4"]["train"]] = float("inf")
    engine = ditto_on(kind, feed=Feed(x=x, y=feed.y, rows=feed.rows, seed=feed.seed))
    with pytest.raises(Diverged, match="Round 0, client c4:"):
        list(train(engine.algorithm, engine, CLIENTS, rounds=1))
    assert not engine.store.committed()


@pytest.mark.parametrize("kind", ENGINES)
def test_resuming_from_a_stored_round_is_bit_equal(kind: type[LoopEngine]) -> None:
    whole = ditto_on(kind)
    expected = trained(whole, 5)
    first = ditto_on(kind)
    server = copied(trained(first, 2))
    again = ditto_on(kind)
    again.store.restore(kept(first))
    *_, last = train(again.algorithm, again, CLIENTS, rounds=5, cohort=COHORT, seed=1, server=server, start=2)
    assert same(last.server, expected)
    assert same(again.store.committed(), whole.store.committed())


@pytest.mark.parametrize(("model", "said"), [(Centered, "mixes the examples"), (Attentive, "draws random numbers of its own")])
def test_a_model_that_cannot_share_a_batch_is_refused_by_vector_and_runs_on_loop(model: type[nn.Module], said: str) -> None:
    algorithm = algorithm_entry("fedavg").build(task_of(model))
    vector = VectorEngine(algorithm, feed_for(), WORK)
    with pytest.raises(NotBatchable, match=said) as caught:
        list(train(algorithm, vector, CLIENTS, rounds=1))
    assert caught.value.hint and "--engine loop" in caught.value.hint
    once, twice = (list(train(algorithm, LoopEngine(algorithm, feed_for(), WORK), CLIENTS, rounds=2))[-1].server for _ in "ab")
    assert same(once, twice)
    assert distance(once, algorithm.init()) > 0


@pytest.mark.parametrize("client", ["c0", "c1", "c4"])
def test_each_pass_visits_every_example_once(client: str) -> None:
    feed, size = feed_for(), SIZES[CLIENTS.index(client)]
    steps = feed.steps(client, 3, Work(batch_size=4, epochs=2))
    visited = [pick[real] for pick, real in zip(steps.picks, steps.real, strict=True)]
    half = len(visited) // 2
    for part in (visited[:half], visited[half:]):
        assert torch.cat(part).sort().values.tolist() == list(range(size))
    rounds = [tuple(feed.steps(client, i, WORK).picks.flatten().tolist()) for i in range(6)]
    assert len(set(rounds)) > 1


def test_continuing_goes_on_where_the_last_round_stopped() -> None:
    feed, size = feed_for(), SIZES[8]  # four examples in batches of three: two steps a pass, three steps a round
    assert size == 4
    work = Work(batch_size=3, steps=3, continuing=True)
    rounds = [feed.steps("c8", i, work) for i in range(2)]
    picks = [pick[real] for s in rounds for pick, real in zip(s.picks, s.real, strict=True)]
    assert [len(p) for p in picks] == [3, 1, 3, 1, 3, 1]
    for at in (0, 2, 4):
        assert torch.cat(picks[at : at + 2]).sort().values.tolist() == [0, 1, 2, 3]


def test_poisson_draws_each_example_at_the_rate_that_is_promised() -> None:
    steps = feed_for().steps("c10", 0, Work(batch_size=4, steps=3000, poisson=True))
    size, rate = SIZES[10], 4 / SIZES[10]
    times = torch.bincount(steps.picks[steps.real], minlength=size) / len(steps)
    assert float((times - rate).abs().max()) < 5 * (rate * (1 - rate) / len(steps)) ** 0.5
    counts = steps.real.sum(1).double()
    assert abs(float(counts.var()) - size * rate * (1 - rate)) < 0.4  # binomial: the draws are independent


def test_padding_reads_only_the_clients_own_rows() -> None:
    feed, asked = feed_for(), CLIENTS[:6]
    padded = pad([feed.steps(c, 0, WORK) for c in asked])
    for i, client in enumerate(asked):
        own = set(feed.rows[client]["train"].tolist())
        assert set(padded.rows[i].tolist()) == own
        assert set(padded.rows[i][padded.picks[i]].flatten().tolist()) <= own
        assert int(padded.present[i].sum()) == len(own)
        assert int(padded.real[i].sum()) == len(own)
        assert int(padded.live[i].sum()) == len(feed.steps(client, 0, WORK))
