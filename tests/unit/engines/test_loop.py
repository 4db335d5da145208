"""The loop engine: weights, adaptation, predictions and sums; it runs any module."""

from __future__ import annotations

from dataclasses import replace

import torch

from freehold.core import Algorithm, Batch, Steps, Tree, algorithm_entry, train
from freehold.engines import LoopEngine, VectorEngine, Work
from freehold.engines.loop import ADAPTING
from tests.problems import CLIENTS, distance, feed_for, plain, same

TASK = plain()
WORK = Work(batch_size=4, epochs=1)


def algorithm(name: str, **settings: float) -> Algorithm:
    return algorithm_entry(name).build(TASK, **settings)


def test_a_client_weighs_its_examples_or_one() -> None:
    examples = LoopEngine(algorithm("fedavg"), feed_for(), WORK)
    assert [examples.weight(c) for c in CLIENTS[:3]] == [5.0, 2.0, 9.0]
    assert LoopEngine(algorithm("scaffold-uniform"), feed_for(), WORK).weight("c0") == 1.0
    assert LoopEngine(algorithm("fedavg"), feed_for(), WORK, weighting="uniform").weight("c2") == 1.0
    assert LoopEngine(algorithm("scaffold-uniform"), feed_for(), WORK, weighting="examples").weight("c2") == 9.0


def test_a_weight_is_cut_to_the_most_that_is_allowed() -> None:
    for engine in (LoopEngine, VectorEngine):
        bounded = engine(algorithm("fedavg"), feed_for(), WORK, most_weight=5)
        assert [bounded.weight(c) for c in CLIENTS[:3]] == [5.0, 2.0, 5.0]
        assert engine(algorithm("scaffold-uniform"), feed_for(), WORK, most_weight=5).weight("c2") == 1.0


def test_the_mean_of_a_round_is_that_of_the_clients_alone() -> None:
    chosen = algorithm("fedavg")
    alone = [next(train(chosen, LoopEngine(chosen, feed_for(), WORK), [c], rounds=1)).server for c in CLIENTS[:3]]
    (together,) = train(chosen, LoopEngine(chosen, feed_for(), WORK), CLIENTS[:3], rounds=1)
    expected = {k: sum(w * s[k] for w, s in zip((5, 2, 9), alone, strict=True)) / 16 for k in TASK.init}
    assert distance(together.server, expected) < 1e-12


def test_adaptation_has_work_and_steps_of_its_own() -> None:
    seen: list[Steps] = []

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        seen.append(steps)
        assert torch.equal(validation["x"], feed_for().batch("c3", "validation")["x"])
        return personal

    chosen = replace(algorithm("fedavg"), adapt=adapt)
    LoopEngine(chosen, feed_for(), WORK, adaptation=Work(batch_size=2, steps=7)).predict(TASK.init, ["c3"], ["test"])
    LoopEngine(chosen, feed_for(), WORK).predict(TASK.init, ["c3"], ["test"])
    assert [len(s) for s in seen] == [7, 3]
    assert torch.equal(seen[1].keys, feed_for().steps("c3", ADAPTING, WORK).keys)


def test_predictions_come_by_client_and_split_in_the_order_of_their_rows() -> None:
    feed = feed_for()
    engine = LoopEngine(algorithm("fedavg"), feed, WORK)
    said = engine.predict(TASK.init, ["c4", "c1"], ["test", "train"])
    assert list(said) == ["c4", "c1"] and list(said["c4"]) == ["test", "train"]
    assert torch.equal(said["c1"]["train"], TASK.predict(TASK.init, feed.x[feed.rows["c1"]["train"]]))


def test_sums_are_of_the_clients_own_model_on_its_own_rows() -> None:
    feed, chosen = feed_for(), algorithm("local", lr=0.5)
    engine = LoopEngine(chosen, feed, WORK)
    list(train(chosen, engine, CLIENTS[:3], rounds=3))
    sums = engine.evaluate({}, CLIENTS[:3], "train")
    for client in CLIENTS[:3]:
        rows = feed.rows[client]["train"]
        outputs = TASK.predict(engine.store.read(client, {})["model"], feed.x[rows])
        assert same(sums[client], TASK.measure(outputs, feed.y[rows]))
    assert float(sums["c2"]["count"]) == 9


def test_evaluating_keeps_nothing_and_changes_nothing() -> None:
    chosen = algorithm("fedavg-finetuned")
    engine = LoopEngine(chosen, feed_for(), WORK)
    first = engine.evaluate(TASK.init, CLIENTS[:2], "test")
    assert engine.store.committed() == {}
    assert same(dict(engine.evaluate(TASK.init, CLIENTS[:2], "test")), dict(first))
