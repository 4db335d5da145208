"""Record-level privacy: an algorithm refuses it, or touches examples by clipped, noised gradients only, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from freehold.algorithms import select
from freehold.core import (
    Algorithm,
    Batch,
    Objective,
    Privacy,
    Round,
    State,
    Tree,
    algorithm_entry,
    algorithm_names,
    descend,
    flatten,
    gradient,
    private,
)
from tests.laws.cases import NAMES, build, build_private, over_all, steps, task_of
from tests.problems import CLIENTS, feed_for, same

NOTHING = Privacy(max_norm=0.0, noise_multiplier=0.0, expected_batch=4)
SOME = Privacy(max_norm=1.0, noise_multiplier=1.0, expected_batch=4)
CLIENT = CLIENTS[0]  # two steps in a round

REFUSE = {"fedala", "feddbe", "fedproto", "fedrep", "fedrod", "ifca", "per-fedavg", "per-fedavg-hf", "pfedme", "select"}


def two_rounds(algorithm: Algorithm, table: dict[str, Tensor]) -> tuple[Tree, ...]:
    """All that leaves a client in two rounds in which the server does not move."""
    shared = algorithm.broadcast(algorithm.init())
    personal, left = algorithm.enroll(shared), {}
    for index in range(2):
        mine = replace(steps(CLIENT, index, problem="words"), table=table)
        result = algorithm.client_update(Round(index, 1, 1), shared, personal, mine)
        personal, left[str(index)] = result.personal, {"contribution": result.contribution, "metrics": result.metrics}
    return left


@over_all
def test_nothing_that_leaves_depends_on_the_examples_when_they_are_clipped_to_nothing(name: str) -> None:
    algorithm = build_private(name, NOTHING, "words")
    if algorithm is not None:
        feed, rng = feed_for("words"), torch.Generator().manual_seed(1)
        others = {"x": torch.randint(0, 7, feed.x.shape, generator=rng), "y": torch.randint(0, 3, feed.y.shape, generator=rng)}
        assert same(two_rounds(algorithm, {"x": feed.x, "y": feed.y}), two_rounds(algorithm, others))


def test_the_algorithms_that_refuse_are_those_that_are_meant() -> None:
    ours = {n for n in NAMES if n not in algorithm_names() or algorithm_entry(n).package == "freehold"}
    assert {n for n in ours if build_private(n, SOME, "words") is None} == REFUSE


def test_select_between_local_and_one_other_needs_no_refusal() -> None:
    task = private(task_of("words"), SOME)
    assert select({n: build(n, task) for n in ("local", "ditto")}).name == "select(local, ditto)"


class Touches:
    """Rules for `gradient` and `descend` that note which batch is read, and spoil what comes of one of the readings."""

    def __init__(self, spoiled: int | None = None) -> None:
        self.spoiled, self.keys = spoiled, []

    def gradient(self, size: int, objective: Objective, state: State, batch: Batch) -> tuple[State, State]:
        objective, state, batch = only((objective, state, batch))
        grads, buffers = gradient.fn(objective, state, batch)
        return alone((self.touch(batch, grads), buffers))

    def descend(self, size: int, objective: Objective, state: State, batches: Iterable[Batch], lr: float | Tensor) -> State:
        objective, state, batches, lr = only((objective, state, batches, lr))
        for batch in batches:
            state = self.touch(batch, descend.fn(objective, state, [batch], lr))
        return alone(state)

    def touch(self, batch: Batch, outcome: State) -> State:
        self.keys.append(int(batch["key"]))
        spoil = len(self.keys) - 1 == self.spoiled
        return {k: t + 0.1 if spoil and t.is_floating_point() else t for k, t in outcome.items()}


def only(tree: object) -> object:
    return pytree.tree_map_only(Tensor, lambda t: t[0], tree)


def alone(tree: object) -> object:
    return pytree.tree_map_only(Tensor, lambda t: t[None], tree)


@contextmanager
def watched(touches: Touches) -> Iterator[Touches]:
    gradient.def_vmap(touches.gradient)
    descend.def_vmap(touches.descend)
    try:
        yield touches
    finally:
        gradient.def_vmap(None)
        descend.def_vmap(None)


@over_all
def test_what_leaves_rests_on_at_most_one_noised_gradient_per_step(name: str) -> None:
    """Twice the same batch would be twice the privacy spent, and with the same key even the noise would cancel."""
    algorithm = build_private(name, SOME, "words")
    if algorithm is None:
        return
    feed = feed_for("words")

    def left(spoiled: int | None) -> tuple[Tree, list[int]]:
        with watched(Touches(spoiled)) as touches:
            out = vmap(lambda x, y: flatten(two_rounds(algorithm, {"x": x, "y": y})))(feed.x[None], feed.y[None])
        return out, touches.keys

    assert two_rounds(algorithm, {"x": feed.x, "y": feed.y})  # also makes the steps, whose keys are drawn outside of vmap
    clean, keys = left(None)
    released = [key for i, key in enumerate(keys) if not same(left(i)[0], clean)]
    assert len(released) == len(set(released))
