"""Law 5, blind to the engine: loop and vector give the same server, personal states and predictions, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import pytest

from freehold.algorithms import WRAPPERS
from freehold.core import Algorithm, Privacy, Sums, Tree, algorithm_entry, algorithm_names, train
from freehold.engines import ExecutorName, LoopEngine, VectorEngine, Work
from freehold.errors import TaskError
from tests.laws.cases import NAMES, build, build_private, over_all, task_of
from tests.problems import CLIENTS, PROBLEMS, distance, feed_for

TOLERANCE = 1e-9
EXECUTORS: tuple[ExecutorName, ...] = ("loop", "stacked", "lowrank", "vmap")

REFUSED = {
    "plain": {"fedbn"},
    "mixed": set(),
    "conv": set(),
    "words": set(),
    "recurrent": {"fedbn", "fedproto", "fedrod"},
    "linear": {"fedbn", "fedproto", "fedrod", "knn-per"},
}
"""What the algorithms of Freehold itself refuse, problem by problem."""


class Outcome(NamedTuple):
    """Everything a run leaves."""

    server: Tree
    metrics: Tree
    personal: dict[str, Tree]
    sums: dict[str, Sums]


def outcome(algorithm: Algorithm, engine: LoopEngine, *, clients: Sequence[str], rounds: int, cohort: int) -> Outcome:
    *_, last = train(algorithm, engine, clients, rounds=rounds, cohort=cohort, seed=2)
    shared = algorithm.broadcast(last.server)
    committed = engine.store.committed()
    return Outcome(
        last.server, last.metrics, {c: committed[c] for c in sorted(committed)}, dict(engine.evaluate(shared, clients, "test"))
    )


def check(
    algorithm: Algorithm,
    problem: str,
    work: Work,
    *,
    chunks: Sequence[int],
    rounds: int = 2,
    clients: int = 5,
    cohort: int = 3,
    executors: Sequence[ExecutorName] = EXECUTORS,
) -> None:
    """Both engines, on a part of the clients in each round; some never take part, and are served all the same."""
    feed = feed_for(problem)
    asked = {"clients": CLIENTS[:clients], "rounds": rounds, "cohort": cohort}
    loop = outcome(algorithm, LoopEngine(algorithm, feed, work), **asked)
    for chunk, executor in product(chunks, executors):
        vector = outcome(algorithm, VectorEngine(algorithm, feed, work, chunk=chunk, executor=executor), **asked)
        for part, a, b in zip(Outcome._fields, loop, vector, strict=True):
            assert distance(a, b) < TOLERANCE, (part, chunk, executor)


def built(name: str, problem: str) -> Algorithm | None:
    """The algorithm, or None where it says that this problem is not for it."""
    try:
        return build(name, task_of(problem))
    except TaskError as refusal:
        assert refusal.hint
        return None


@over_all
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_engines_agree(problem: str, name: str) -> None:
    algorithm = built(name, problem)
    if algorithm is not None:
        rounds = 2 if problem in ("mixed", "words") else 1
        check(algorithm, problem, Work(batch_size=4, epochs=1), chunks=[3], rounds=rounds)


@over_all
def test_the_engines_agree_over_four_rounds_of_single_steps(name: str) -> None:
    algorithm = build(name, task_of("plain") if name != "fedbn" else task_of("mixed"))
    check(algorithm, "plain", Work(batch_size=5, steps=1, continuing=True), chunks=[2], rounds=4, cohort=2)


@pytest.mark.parametrize("name", ["ditto", "fedproto", "scaffold"])
def test_the_size_of_a_chunk_does_not_matter(name: str) -> None:
    check(build(name, task_of("mixed")), "mixed", Work(batch_size=4, epochs=1), chunks=[1, 2, 64], clients=7, cohort=5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_refusals_are_those_that_are_meant(problem: str) -> None:
    ours = [
        n
        for n in (*algorithm_names(), "select", *WRAPPERS)
        if n not in algorithm_names() or algorithm_entry(n).package == "freehold"
    ]
    assert {n for n in ours if built(n, problem) is None} == REFUSED[problem]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("local", {"optimizer": "adam", "lr": 0.01}),
        ("ifca", {"clusters": 3}),
        ("fedrep", {"head_passes": 2}),
        ("knn-per", {"neighbors": 3}),
        ("knn-per", {"neighbors": 3, "weight": 1.0}),
        ("fedala", {"weight_steps": 1}),
        ("apfl", {"alpha": 0.0}),
    ],
)
def test_the_engines_agree_with_other_hyperparameters(name: str, settings: dict[str, float | int | str]) -> None:
    check(algorithm_entry(name).build(task_of("mixed"), **settings), "mixed", Work(batch_size=4, epochs=2), chunks=[4])


@over_all
def test_the_engines_agree_under_privacy_with_poisson_batches(name: str) -> None:
    algorithm = build_private(name, Privacy(max_norm=0.7, noise_multiplier=0.5, expected_batch=2), "words")
    if algorithm is not None:
        check(algorithm, "words", Work(batch_size=2, steps=3, poisson=True), chunks=[3])


@pytest.mark.parametrize("name", ["fedavg", "fedproto", "scaffold"])
def test_the_engines_agree_with_weights_that_override_the_algorithms(name: str) -> None:
    algorithm, feed = build(name, task_of("mixed")), feed_for("mixed")
    work = Work(batch_size=4, steps=2)
    for weighting in ("examples", "uniform"):
        loop, vector = (
            e(algorithm, feed, work, weighting=weighting, adaptation=Work(batch_size=3, steps=1))
            for e in (LoopEngine, VectorEngine)
        )
        found = [outcome(algorithm, e, clients=CLIENTS[:3], rounds=1, cohort=3) for e in (loop, vector)]
        for a, b in zip(*found, strict=True):
            assert distance(a, b) < TOLERANCE


def test_all_of_the_registry_is_here() -> None:
    assert set(algorithm_names()) < set(NAMES)
