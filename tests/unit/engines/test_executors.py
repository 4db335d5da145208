"""Executors: what is chosen, what falls back and why, clients of unequal size, too little memory, and waits for a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from freehold.core import Algorithm, Round, algorithm_entry, task_from, train
from freehold.engines import DeviceName, ExecutorName, Feed, LoopEngine, VectorEngine, Work, device_of, vector
from freehold.engines.choice import CHUNKS, Choice, Load, choose, near
from freehold.errors import DeviceMissing, NotBatchable, TooFewExamples
from tests.laws.cases import build, task_of
from tests.problems import CLASSES, CLIENTS, distance, feed_for

WORK = Work(batch_size=4, epochs=1)
BATCHED: tuple[ExecutorName, ...] = ("stacked", "lowrank", "vmap")


def fedavg() -> Algorithm:
    return build("fedavg", task_of("plain"))


def asked(engine: LoopEngine, clients: tuple[str, ...] = CLIENTS) -> dict[str, Any]:
    """The mean contribution of a round."""
    algorithm = engine.algorithm
    tally = engine.collect(Round(0, len(clients), len(clients)), algorithm.broadcast(algorithm.init()), clients)
    return dict(tally.mean())


def ragged(clients: int = 60, mean: float = 3.5, seed: int = 5) -> Feed:
    """Clients of log-normal sizes."""
    rng = torch.Generator().manual_seed(seed)
    sizes = (torch.randn(clients, generator=rng) + mean).exp().clamp(1, 400).int().tolist()
    rows = torch.arange(sum(sizes)).split(sizes)
    split = {f"c{i}": {"train": r, "validation": r[:0], "test": r[:1]} for i, r in enumerate(rows)}
    x = torch.randn(sum(sizes), 6, generator=rng, dtype=torch.float64)
    return Feed(x=x, y=torch.randint(CLASSES, (sum(sizes),), generator=rng), rows=split)


class Centered(nn.Module):
    """Mixes the examples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.out(torch.tanh(hidden - hidden.mean(0)))


# Unequal clients.


@pytest.mark.parametrize("executor", ["stacked", "lowrank", "loop"])
def test_nearly_all_steps_are_useful_on_log_normal_sizes_and_the_result_is_that_of_the_loop(executor: ExecutorName) -> None:
    feed = ragged()
    engine = VectorEngine(fedavg(), feed, WORK, executor=executor, chunk=16)
    found = asked(engine, tuple(feed.rows))
    told = engine.execution.told()
    assert told["useful_steps"] >= 0.95
    assert told["useful_examples"] >= 0.75
    assert engine.execution.examples == sum(map(feed.size, feed.rows))
    assert distance(found, asked(LoopEngine(fedavg(), feed, WORK), tuple(feed.rows))) < 1e-9


def test_under_plain_vmap_every_step_is_one_of_the_whole_chunk() -> None:
    feed = ragged()
    engine = VectorEngine(fedavg(), feed, WORK, executor="vmap", chunk=60)
    asked(engine, tuple(feed.rows))
    assert engine.execution.told()["useful_steps"] < 0.5


# What is chosen.


def load(flop: float, *, parameters: int = 8_000, convolved: float = 0.0) -> Load:
    return Load(flop=flop, convolved=convolved, parameters=parameters, itemsize=4, width=784, linear=((10, 784),))


def test_small_steps_are_stacked_and_large_ones_run_one_client_at_a_time() -> None:
    small, large = choose(load(3e5), 50, 50, clients=100), choose(load(1.4e9, convolved=1.3e9), 100, 100, clients=32)
    assert (small.executor, large.executor) == ("stacked", "loop")
    assert "cost model" in small.why and set(small.estimated_us) >= {"loop", "stacked", "vmap"}


def test_a_large_matrix_and_few_rows_are_factored() -> None:
    mlp = Load(flop=7.6e6, convolved=0.0, parameters=159_010, itemsize=4, width=784, linear=((200, 784), (10, 200)))
    assert choose(mlp, 50, 50, clients=100).executor == "lowrank"
    assert choose(mlp, 5000, 5000, clients=100).executor != "lowrank"


def test_a_chunk_lies_within_bounds_and_shrinks_as_the_model_grows() -> None:
    sizes = [load(1e6, parameters=10**power).chunk("stacked") for power in range(2, 9)]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) <= set(range(CHUNKS[0], CHUNKS[1] + 1)) and len(set(sizes)) > 2


def test_a_short_run_is_never_measured_so_that_it_repeats_bit_for_bit() -> None:
    chosen = choose(load(3e5), 50, 50, clients=100)
    assert near(chosen, 1000) == () and len(near(chosen, None)) >= 1


def test_what_was_chosen_is_told_and_a_continued_run_keeps_it() -> None:
    engine = VectorEngine(fedavg(), feed_for(), WORK)
    asked(engine)
    told = engine.execution.told()
    assert told["executor"] != "auto" and told["flop_per_step"] > 0 and told["why"] and not told["measured_us"]
    kept = Choice(executor="vmap", chunk=3, why="kept")
    going_on = VectorEngine(fedavg(), feed_for(), WORK, choice=kept)
    asked(going_on)
    assert (going_on.execution.executor, going_on.execution.chunk) == ("vmap", 3)


def test_explaining_measures_and_changes_no_choice_and_no_result() -> None:
    quiet, told = (VectorEngine(fedavg(), feed_for(), WORK, explain=explain) for explain in (False, True))
    assert distance(asked(quiet), asked(told)) == 0.0
    assert quiet.execution.executor == told.execution.executor and told.execution.told()["measured_us"]
    assert told.store.committed() == {}


def test_a_long_run_takes_what_was_measured_to_be_fastest() -> None:
    engine = VectorEngine(build("ditto", task_of("plain")), feed_for(), WORK, rounds=10**9)
    found = asked(engine)
    told = engine.execution.told()
    assert told["executor"] == min(told["measured_us"], key=told["measured_us"].__getitem__)
    assert distance(found, asked(LoopEngine(engine.algorithm, feed_for(), WORK))) < 1e-9


# What falls back.


def test_a_module_that_cannot_be_batched_falls_back_with_one_line_that_says_why() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = task_from(Centered().double(), F.cross_entropy, classes=CLASSES)
    algorithm = algorithm_entry("ditto").build(task)
    engine = VectorEngine(algorithm, feed_for(), WORK, chunk=4)
    for _ in train(algorithm, engine, CLIENTS, rounds=2):
        pass
    assert engine.execution.executor == "loop"
    (line,) = engine.execution.told()["fallbacks"]
    assert "→ loop" in line and "mixes the examples" in line
    assert distance(asked(engine), asked(_continued(engine))) < 1e-9
    with pytest.raises(NotBatchable):
        asked(VectorEngine(algorithm, feed_for(), WORK, executor="stacked"))


def _continued(engine: VectorEngine) -> LoopEngine:
    loop = LoopEngine(engine.algorithm, engine.feed, engine.work)
    loop.store.restore(engine.store.committed())
    return loop


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """An allocator that has room for the updates of two clients at once."""
    sizes: list[int] = []
    plain = VectorEngine._together

    def together(self: VectorEngine, round: Round, shared: Any, clients: list[str], steps: Any) -> Any:
        sizes.append(len(clients))
        if len(clients) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to …")
        return plain(self, round, shared, clients, steps)

    monkeypatch.setattr(VectorEngine, "_together", together)
    yield sizes


@pytest.mark.parametrize("executor", BATCHED)
def test_too_little_memory_halves_the_chunk_and_goes_on(little_memory: list[int], executor: ExecutorName) -> None:
    engine = VectorEngine(fedavg(), feed_for(), WORK, executor=executor, chunk=8)
    found = asked(engine)
    assert little_memory[:3] == [8, 4, 2] and set(little_memory[2:]) == {2} and sum(little_memory[2:]) == len(CLIENTS)
    assert "8 → 4: there was not enough memory" in engine.execution.told()["fallbacks"][0]
    assert distance(found, asked(LoopEngine(fedavg(), feed_for(), WORK))) < 1e-9


def test_too_little_memory_for_one_client_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(VectorEngine, "_together", together)
    with pytest.raises(torch.OutOfMemoryError):
        asked(VectorEngine(fedavg(), feed_for(), WORK, executor="vmap", chunk=4))


@pytest.mark.parametrize("engine", [LoopEngine, VectorEngine])
@pytest.mark.parametrize("name", ["ditto", "knn-per", "fedavg-finetuned"])
def test_a_client_without_training_data_is_skipped_and_reported_and_served_all_the_same(
    engine: type[LoopEngine], name: str
) -> None:
    feed = feed_for("mixed")
    rows = {c: dict(feed.rows[c]) for c in CLIENTS[:4]}
    rows["c1"]["train"] = rows["c1"]["train"][:0]
    lacking = Feed(x=feed.x, y=feed.y, rows=rows, seed=feed.seed)
    algorithm = build(name, task_of("mixed"))
    runner = engine(algorithm, lacking, WORK)
    tally = runner.collect(Round(0, 4, 4), algorithm.init(), CLIENTS[:4])
    assert tally.clients == 3 and list(runner.execution.skipped) == ["c1"]
    runner.settle(True)
    assert set(runner.store.committed()) == {"c0", "c2", "c3"}
    said = runner.predict(algorithm.init(), CLIENTS[:4], ["test"])
    assert list(said) == list(CLIENTS[:4]) and bool(said["c1"]["test"].isfinite().all())
    with pytest.raises(TooFewExamples, match="None of the 1 clients"):
        runner.collect(Round(0, 1, 1), algorithm.init(), ["c1"])


# Waits for a device.


class Waits(TorchDispatchMode):
    """Counts what would make the CPU wait for a device: a number that is asked of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("executor", BATCHED)
def test_a_batched_round_waits_no_more_often_when_it_has_more_steps(executor: ExecutorName) -> None:
    engine = VectorEngine(fedavg(), feed_for(), WORK, executor=executor, chunk=64)
    asked(engine)  # what is done once
    waits = []
    for epochs in (1, 4):
        engine.work = Work(batch_size=4, epochs=epochs)
        with Waits() as counted:
            asked(engine)
        waits.append(counted.count)
    assert waits[0] == waits[1]


# Predictions and devices.


def test_predictions_in_blocks_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build("fedavg-finetuned", task_of("mixed"))
    found = []
    for block in (1 << 25, 13):
        monkeypatch.setattr(vector, "_BLOCK", block)
        for executor in ("loop", "stacked"):
            engine = VectorEngine(algorithm, feed_for("mixed"), WORK, executor=executor)
            found.append(dict(engine.predict(algorithm.init(), CLIENTS, ["train", "test"])))
    assert all(distance(found[0], other) < 1e-9 for other in found[1:])


def test_a_device_that_is_not_there_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("cpu").type == "cpu"
    with pytest.raises(DeviceMissing) as refusal:
        device_of("cuda")
    assert "--device cpu" in refusal.value.hint and refusal.value.code == 606


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("executor", ["auto", *BATCHED])
@pytest.mark.parametrize("name", ["fedavg", "ditto", "scaffold", "fedrep"])
def test_a_gpu_gives_what_the_cpu_gives(name: str, executor: ExecutorName) -> None:
    from freehold.engines import moved

    where: DeviceName = "cuda"
    device = device_of(where)
    cpu, gpu = build(name, task_of("mixed")), build(name, moved(task_of("mixed"), device))
    feed = feed_for("mixed")
    *_, one = train(cpu, LoopEngine(cpu, feed, WORK), CLIENTS, rounds=2)
    *_, other = train(gpu, VectorEngine(gpu, feed.to(device), WORK, executor=executor), CLIENTS, rounds=2)
    from freehold.core import tree_map

    assert distance(one.server, tree_map(lambda t: t.to("cpu"), other.server)) < 1e-9
