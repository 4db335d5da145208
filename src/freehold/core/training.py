"""Training as a generator: the caller's `for` loop is the callback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from freehold.core.algorithm import Algorithm, Metrics, Round, Tally
from freehold.core.task import Sums
from freehold.core.trees import Tree, is_finite, scale
from freehold.drawing import draw_cohort
from freehold.errors import Diverged


class Engine(Protocol):
    """What runs a cohort."""

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort; new personal states are kept as pending until `settle`."""

    def settle(self, counted: bool) -> None:
        """The round that was collected counted: keep the pending personal states. Or it did not: drop them."""

    def evaluate(self, shared: Tree, clients: Sequence[str], split: str) -> Mapping[str, Sums]:
        """Measure each client's own adapted model on its own `split` ("train", "validation" or "test")."""


class RoundReport(NamedTuple):
    """What a round leaves."""

    round: Round
    server: Tree
    metrics: Metrics
    mean: Tree
    """The mean contribution: names, shapes and dtypes of what each client sent."""


def train(
    algorithm: Algorithm,
    engine: Engine,
    clients: Sequence[str],
    *,
    rounds: int,
    cohort: int | None = None,
    seed: int = 0,
    server: Tree | None = None,
    start: int = 0,
) -> Iterator[RoundReport]:
    """Run rounds `start` to `rounds - 1`: log, evaluate, checkpoint or `break` between them.

    `cohort` clients are asked in each round, all by default. `server` and `start` continue an interrupted run, to the same
    result. Raises Diverged where the server state is no longer finite; the engine then has the states of the round before.
    """
    server = algorithm.init() if server is None else server
    for index in range(start, rounds):
        asked = draw_cohort(clients, len(clients) if cohort is None else cohort, seed=seed, index=index)
        round_ = Round(index, len(asked), len(clients))
        try:
            tally = engine.collect(round_, algorithm.broadcast(server), asked)
            heard = replace(round_, cohort=tally.clients)
            mean = tally.mean()
            after = algorithm.server_update(heard, server, mean)
            if not is_finite(after):
                raise Diverged(
                    f"Round {index}: the server state of {algorithm.name} is no longer finite.",
                    hint="Lower the server's learning rate.",
                )
        except BaseException:
            engine.settle(counted=False)
            raise
        engine.settle(counted=True)
        server = after
        yield RoundReport(heard, server, scale(tally.metrics, 1 / tally.weight), mean)
