"""The loop engine: one client at a time, nothing padded, for any module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

from torch import Tensor

from freehold.core import Algorithm, ClientResult, Round, Sums, Tally, Tree, Weighting, is_finite
from freehold.engines.execution import Execution
from freehold.engines.feed import Feed, Work
from freehold.engines.store import PersonalStates, PersonalStore
from freehold.errors import Diverged, TooFewExamples

ADAPTING = -1
"""The round index under which steps for `adapt` are drawn."""


class LoopEngine:
    """Runs a cohort one client after the other; the reference that other engines are held against."""

    def __init__(
        self,
        algorithm: Algorithm,
        feed: Feed,
        work: Work,
        *,
        adaptation: Work | None = None,
        weighting: Weighting | None = None,
        most_weight: int | None = None,
    ) -> None:
        """`adaptation` is the work of `adapt`, by default that of a round; `weighting` overrides the algorithm's own.

        Weights above `most_weight` are cut to it.
        """
        self.algorithm, self.feed, self.work = algorithm, feed, work
        self.adaptation = adaptation or work
        self.weighting, self.most_weight = weighting or algorithm.weighting, most_weight
        self.store: PersonalStates = PersonalStore(algorithm.enroll)
        self.execution = Execution(executor="loop", chunk=1)

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort."""

        present = self.present(cohort)

        def one(client: str) -> Tally:
            steps = self.feed.steps(client, round.index, self.work)
            result = self.algorithm.client_update(round, shared, self.store.read(client, shared), steps)
            check_finite(result, client, round, self.algorithm.name)
            self.store.stage(client, result.personal)
            return Tally.of(result, self.weight(client))

        return reduce(add, map(one, present))

    def present(self, cohort: Sequence[str]) -> list[str]:
        """The clients that have training data; the others are put down as skipped. TooFewExamples if nobody has."""
        return present(self.feed, self.execution, cohort)

    def settle(self, counted: bool) -> None:
        """Keep or drop the personal states of the round that was collected."""
        self.store.settle(counted)

    def weight(self, client: str) -> float:
        """What a client's contribution counts with."""
        if self.weighting == "uniform":
            return 1.0
        examples = self.feed.size(client)
        return float(examples if self.most_weight is None else min(examples, self.most_weight))

    def adapted(self, shared: Tree, client: str) -> Tree:
        """The client's personal state, adapted to predict with."""
        steps = self.feed.steps(client, ADAPTING, self.adaptation)
        return self.algorithm.adapt(shared, self.store.read(client, shared), steps, self.feed.batch(client, "validation"))

    def predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """client -> split -> outputs of its own model [n, ...]."""
        out: dict[str, Mapping[str, Tensor]] = {}
        for client in clients:
            if not self.feed.size(client):
                out[client] = self.unadapted(shared, client, splits)
                continue
            personal = self.adapted(shared, client)
            out[client] = {
                s: self.algorithm.outputs(shared, personal, self.feed.x[self.feed.rows[client][s]]).to("cpu") for s in splits
            }
        return out

    def unadapted(self, shared: Tree, client: str, splits: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of a client that has no training data to adapt with: of the state that it has."""
        state = self.algorithm.personalize(shared, self.store.read(client, shared))
        return {s: self.algorithm.task.predict(state, self.feed.x[self.feed.rows[client][s]]).to("cpu") for s in splits}

    def evaluate(self, shared: Tree, clients: Sequence[str], split: str) -> Mapping[str, Sums]:
        """client -> sums of its own model on its own split."""
        said = self.predict(shared, clients, [split])
        return {c: self.algorithm.task.measure(said[c][split], self.feed.y[self.feed.rows[c][split]].to("cpu")) for c in clients}


def present(feed: Feed, execution: Execution, cohort: Sequence[str]) -> list[str]:
    """The clients of a cohort that have training data; `execution` is told of the others. TooFewExamples if nobody has."""
    there = [c for c in cohort if feed.size(c)]
    execution.skipped |= dict.fromkeys(c for c in cohort if not feed.size(c))
    if not there:
        raise TooFewExamples(
            f"None of the {len(cohort)} clients of this round has training rows.",
            hint="Leave them out, or raise min_examples.",
        )
    return there


def check_finite(result: ClientResult, client: str, round: Round, algorithm: str) -> None:
    """Raise Diverged, which names client and round, where a result is not finite."""
    for part, tree in (("contribution", result.contribution), ("personal state", result.personal)):
        if not is_finite(tree):
            raise Diverged(
                f"Round {round.index}, client {client}: the {part} of {algorithm} is not finite; its loss was NaN or infinite.",
                hint="Lower the learning rate, or look at the data with `freehold data check`. The round before was kept.",
            )
