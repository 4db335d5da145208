"""A cohort over several workers: each does its part, partial tallies come back, and what a lost worker leaves is done again.

Workers are processes of this machine (`processes`) or actors of a Ray cluster (`ray`). Either way a worker holds the table of
all rows and an engine of its own, is told the shared state once a round, and answers with sums, never with what one client
made. `States` says where personal states are between two rounds, and so who can be asked about whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from freehold.core import Algorithm, Round, Sums, Tally, Tree, tree_map
from freehold.engines.execution import Execution
from freehold.engines.feed import Feed
from freehold.engines.loop import LoopEngine, present
from freehold.errors import WorkersLost

MOST_LOSSES = 3
"""How often a worker may be lost over one and the same question. The first time something else ended it; after so many it is
the question that does."""


class Store(Protocol):
    """All personal states of an engine, for a checkpoint."""

    def committed(self) -> Mapping[str, Tree]:
        """client -> its committed state."""

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these."""


class Runner(Protocol):
    """What a study asks of an engine, wherever it computes."""

    @property
    def feed(self) -> Feed:
        """The data."""

    @property
    def store(self) -> Store:
        """The personal states."""

    @property
    def execution(self) -> Execution:
        """How it ran."""

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort."""

    def settle(self, counted: bool) -> None:
        """Keep or drop the personal states of the round that was collected."""

    def adapted(self, shared: Tree, client: str) -> Tree:
        """The client's personal state, adapted to predict with."""

    def predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """client -> split -> outputs of its own model [n, ...]."""

    def evaluate(self, shared: Tree, clients: Sequence[str], split: str) -> Mapping[str, Sums]:
        """client -> sums of its own model on its own split."""


Build = Callable[[Feed], LoopEngine]
"""What makes a worker's engine; it travels to the worker, so it is a function or an object of a module."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question to a worker, about some of the clients."""

    about: Literal["round", "outputs", "adapted", "states"]
    clients: tuple[str, ...]
    round: Round | None = None
    """The round to collect."""
    splits: tuple[str, ...] = ()
    """What to predict."""
    counted: bool | None = None
    """Whether the last round counted that this worker was asked about; None where it keeps no states of its own."""


class Answer(NamedTuple):
    """What a worker says. Tensors may look into its memory: they are good until it is asked again."""

    tree: Tree
    weight: float = 0.0
    clients: int = 0


def answered(engine: LoopEngine, shared: Tree, ask: Ask) -> Answer:
    """A worker's answer."""
    if ask.counted is not None:
        engine.settle(ask.counted)
    if ask.round is not None:
        tally = engine.collect(ask.round, shared, ask.clients)
        return Answer({"total": tally.total, "metrics": tally.metrics}, tally.weight, tally.clients)
    if ask.about == "adapted":
        return Answer(engine.adapted(shared, ask.clients[0]))
    if ask.about == "states":
        committed = engine.store.committed()
        return Answer({client: committed[client] for client in ask.clients})
    return Answer(engine.predict(shared, ask.clients, ask.splits))


class Lost(NamedTuple):
    """Instead of an answer: the worker is gone."""

    why: str


class Crew(Protocol):
    """The workers of a cell, each in a place 0, 1, ..."""

    places: int
    noun: str
    """What a worker is called."""
    remedy: str
    """What to do where workers are lost again and again."""

    def broadcast(self, shared: Tree) -> None:
        """Tell all workers the shared state that the next questions are about."""

    def send(self, place: int, ask: Ask) -> None:
        """Ask one worker. That it is gone shows when its answer is received."""

    def receive(self, places: Collection[int]) -> tuple[int, Answer | Lost | Exception]:
        """The next answer of one of these, or what was raised there."""

    def renew(self, place: int) -> None:
        """Put a worker in the place of a lost one, which knows what it knew but personal states."""

    def abandon(self, places: Collection[int]) -> None:
        """Nobody waits for the answers of these any more."""


class States(Protocol):
    """Where personal states are between two rounds."""

    def parts(self, clients: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Who is to be asked about whom: clients by place."""

    def collecting(self, round: Round, clients: Sequence[str]) -> None:
        """These are about to get new states."""

    def settle(self, counted: bool) -> None:
        """Commit those, or drop them."""

    def renewed(self, place: int) -> None:
        """A lost worker was replaced: bring back what it kept."""

    def committed(self) -> Mapping[str, Tree]:
        """client -> its committed state."""

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these."""


class ShardedEngine:
    """Runs a cohort on a crew; equal to the engine that its workers have, up to rounding, whatever their number."""

    def __init__(self, algorithm: Algorithm, feed: Feed, crew: Crew, states: States) -> None:
        self.algorithm, self.feed, self.store = algorithm, feed, states
        self.execution = Execution(why="each worker chose for its own part, by the cost model")
        self._crew = crew

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort; clients without training data are left out before it is divided, so that no worker has only such."""
        there = present(self.feed, self.execution, cohort)
        self.store.collecting(round, there)
        answers = self._ask(shared, there, lambda part: Ask(about="round", clients=part, round=round))
        tallies = [Tally(total=a.tree["total"], weight=a.weight, clients=a.clients, metrics=a.tree["metrics"]) for a in answers]
        first = replace(tallies[0], total=_copied(tallies[0].total), metrics=_copied(tallies[0].metrics))
        return reduce(add, tallies[1:], first)

    def settle(self, counted: bool) -> None:
        """Keep or drop the personal states of the round that was collected."""
        self.store.settle(counted)

    def adapted(self, shared: Tree, client: str) -> Tree:
        """The client's personal state, adapted to predict with."""
        (answer,) = self._ask(shared, [client], lambda part: Ask(about="adapted", clients=part))
        return _copied(answer.tree)

    def predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """client -> split -> outputs of its own model [n, ...]."""
        found: dict[str, Mapping[str, Tensor]] = {}
        for answer in self._ask(shared, clients, lambda part: Ask(about="outputs", clients=part, splits=tuple(splits))):
            found |= answer.tree
        return {client: found[client] for client in clients}

    def evaluate(self, shared: Tree, clients: Sequence[str], split: str) -> Mapping[str, Sums]:
        """client -> sums of its own model on its own split."""
        said = self.predict(shared, clients, [split])
        return {c: self.algorithm.task.measure(said[c][split], self.feed.y[self.feed.rows[c][split]]) for c in clients}

    def _ask(self, shared: Tree, clients: Sequence[str], about: Callable[[tuple[str, ...]], Ask]) -> list[Answer]:
        asks = {place: about(part) for place, part in enumerate(self.store.parts(clients)) if part}
        self._crew.broadcast(shared)
        found = answers(self._crew, asks, self.store.renewed)
        return [found[place] for place in sorted(found)]


def answers(crew: Crew, asks: Mapping[int, Ask], renewed: Callable[[int], None]) -> dict[int, Answer]:
    """Everybody's answer; what a lost worker was asked is asked of the one in its place.

    All have answered before the first error of a worker is raised, so that nobody is left computing. Raises WorkersLost.
    """
    losses: Counter[int] = Counter()
    found: dict[int, Answer] = {}
    failed: dict[int, Exception] = {}
    waiting = set(asks)
    try:
        for place, ask in asks.items():
            crew.send(place, ask)
        while waiting:
            place, said = crew.receive(waiting)
            if isinstance(said, Lost):
                losses[place] += 1
                if losses[place] == MOST_LOSSES:
                    waiting.discard(place)
                    raise WorkersLost(f"A {crew.noun} was lost {MOST_LOSSES} times in a row ({said.why}).", hint=crew.remedy)
                crew.renew(place)
                renewed(place)
                crew.send(place, asks[place])
                continue
            waiting.discard(place)
            if isinstance(said, Exception):
                failed[place] = said
            else:
                found[place] = said
    except BaseException:
        crew.abandon(waiting)
        raise
    if failed:
        raise failed[min(failed)]
    return found


def balanced(clients: Sequence[str], cost: Callable[[str], float], places: int) -> tuple[tuple[str, ...], ...]:
    """The clients over the places, largest first, each to where there is least to do; in their own order within a place."""
    order = {client: i for i, client in enumerate(clients)}
    load = [0.0] * places
    parts: list[list[str]] = [[] for _ in range(places)]
    for client in sorted(clients, key=lambda c: (-cost(c), order[c])):
        place = load.index(min(load))
        parts[place].append(client)
        load[place] += cost(client)
    return tuple(tuple(sorted(part, key=order.__getitem__)) for part in parts)


def _copied(tree: Tree) -> Tree:
    return tree_map(lambda t: t.clone(), tree)
