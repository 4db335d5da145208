"""What the laws run over: every installed algorithm, ours or a plug-in's, the wrappers, and `select`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest

from freehold.algorithms import WRAPPERS, select, sent_as, wrapped
from freehold.core import (
    Algorithm,
    Batch,
    ClientResult,
    Privacy,
    Round,
    Steps,
    Task,
    Tree,
    algorithm_entry,
    algorithm_names,
    private,
    train,
)
from freehold.engines import LoopEngine, Work
from freehold.errors import NotPrivate
from tests.problems import CLIENTS, PROBLEMS, feed_for

NAMES = (*algorithm_names(), "select", *WRAPPERS, "bfloat16")
"""What `build` knows."""

over_all = pytest.mark.parametrize("name", NAMES)
"""Runs a law over all of them."""

WORK = Work(batch_size=4, epochs=1)
COHORT = CLIENTS[:3]


def build(name: str, task: Task) -> Algorithm:
    """An algorithm with its default hyper-parameters; wrappers go around one with more than a model on the server."""
    if name == "select":
        return select({n: build(n, task) for n in ("local", "fedavg", "ditto")})
    if name in WRAPPERS:
        return wrapped(
            build("fedadam" if name == "clip" else "scaffold", task), name, **({"max_norm": 0.1} if name == "clip" else {})
        )
    if name == "bfloat16":
        return sent_as(build("scaffold", task), "bfloat16")
    return algorithm_entry(name).build(task)


class Case(NamedTuple):
    """An algorithm in the middle of a run on the problem that every one of ours works on."""

    algorithm: Algorithm
    first: Tree
    """The server as it starts."""
    server: Tree
    """The server after two rounds."""
    personal: dict[str, Tree]
    """The clients' states after two rounds."""
    round: Round
    shared: Tree
    """What nodes see now."""
    updates: dict[str, ClientResult]
    """What each client of the cohort does next."""


@cache
def case(name: str) -> Case:
    """The case of an algorithm, run once for all laws."""
    algorithm = build(name, task_of("mixed"))
    engine = LoopEngine(algorithm, feed_for("mixed"), WORK)
    *_, last = train(algorithm, engine, COHORT, rounds=2)
    shared = algorithm.broadcast(last.server)
    personal = {c: engine.store.read(c, shared) for c in COHORT}
    now = Round(2, len(COHORT), len(CLIENTS))
    updates = {c: algorithm.client_update(now, shared, personal[c], steps(c, now.index)) for c in COHORT}
    return Case(algorithm, algorithm.init(), last.server, personal, now, shared, updates)


@cache
def task_of(problem: str) -> Task:
    """A problem's task, built once."""
    return PROBLEMS[problem]()


@cache
def steps(client: str, index: int = 0, *, work: Work = WORK, problem: str = "mixed") -> Steps:
    """A client's local steps in a round."""
    return feed_for(problem).steps(client, index, work)


def validation(client: str) -> Batch:
    """A client's validation examples."""
    return feed_for("mixed").batch(client, "validation")


def build_private(name: str, privacy: Privacy, problem: str = "plain") -> Algorithm | None:
    """The algorithm under record-level privacy; None where it refuses."""
    try:
        return build(name, private(task_of(problem), privacy))
    except NotPrivate as refusal:
        assert refusal.hint
        return None
