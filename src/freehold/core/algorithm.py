"""The one definition of an algorithm: a frozen record of pure functions, blind to where they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from freehold.core.steps import Batch, Steps
from freehold.core.task import Task
from freehold.core.trees import State, Tree, add, move, scale, tree_map
from freehold.errors import SimulationError

Weighting: TypeAlias = Literal["examples", "uniform"]
"""What a contribution counts with: the client's number of training examples, or 1."""

Metrics: TypeAlias = Mapping[str, Tensor]
"""Scalars []; they leave the node and are averaged like contributions."""


@dataclass(frozen=True)
class Round:
    """Which round it is, and for how many."""

    index: int
    """From 0."""
    cohort: int
    """Clients asked (in a client update), or heard from (in a server update)."""
    population: int
    """Clients enrolled in the federation."""


class ClientResult(NamedTuple):
    """What a client update gives."""

    contribution: Tree
    """Leaves the node, through its guard: named differences, or statistics that add up."""
    personal: Tree
    """Stays on the node."""
    metrics: Metrics = MappingProxyType({})
    """Leaves the node."""


def _move(round: Round, server: Tree, mean: Tree) -> Tree:
    return move(server, mean)


def _all(server: Tree) -> Tree:
    return server


def _nothing(shared: Tree) -> Tree:
    return {}


def _as_it_is(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
    return personal


def _shared(shared: Tree, personal: Tree) -> State:
    return shared


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A personalized federated algorithm.

    Shapes of the trees are fixed by `init` and `enroll`: what `server_update` and `client_update` return has the same names,
    shapes and dtypes. All functions are pure, run under `vmap` over clients, and draw no random numbers but from `Steps.keys`.
    """

    name: str
    task: Task
    init: Callable[[], Tree]
    """Server, once: -> server memory and shared state."""
    client_update: Callable[[Round, Tree, Tree, Steps], ClientResult]
    """Node, each round it is asked: (round, shared, personal, steps) -> contribution, personal, metrics."""
    broadcast: Callable[[Tree], Tree] = _all
    """Server -> what nodes see; default: all of it."""
    enroll: Callable[[Tree], Tree] = _nothing
    """Node, once: shared -> its first personal state; default: none."""
    server_update: Callable[[Round, Tree, Tree], Tree] = _move
    """Coordinator, each round: (round, server, mean contribution) -> server; default: `server + mean`."""
    adapt: Callable[[Tree, Tree, Steps, Batch], Tree] = _as_it_is
    """Node, when a model to predict with is wanted: (shared, personal, steps, validation) -> personal. What it returns is
    for predictions only: it is never sent and never trained further. Default: personal as it is."""
    personalize: Callable[[Tree, Tree], State] = _shared
    """Node: (shared, personal) -> the state to predict with; default: shared."""
    predict: Callable[[Tree, Tree, Tensor], Tensor] | None = None
    """Node: (shared, personal, x [B, ...]) -> outputs [B, ...]; only where a state is not enough."""
    weighting: Weighting = "examples"
    """What contributions count with, unless the plan says otherwise."""
    statistics: frozenset[str] = frozenset()
    """Names at the top of the contribution that are no steps of parameters: control variates, sums, and what goes with their
    counts. A server optimizer leaves them as they are; scaling them by themselves would break what they mean."""
    sent_as: torch.dtype | None = None
    """What steps of parameters travel as; None: as they are. Whoever sets it has the contribution rounded to it already, in its
    own dtype. Integers, statistics and metrics keep theirs."""
    associative: bool = True
    """False: the server needs each contribution by itself, so secure aggregation refuses it."""
    in_step: bool = False
    """True: a contribution means something only beside others of the same round, even where it is all steps of parameters."""

    @property
    def asynchronous(self) -> bool:
        """Whether contributions that were made from older shared states may count, and count less."""
        return self.associative and not self.statistics and not self.in_step

    @property
    def adapts(self) -> bool:
        """Whether a model to predict with is trained further first."""
        return self.adapt is not _as_it_is

    def outputs(self, shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        """The outputs of the client's own model [B, ...]."""
        if self.predict is not None:
            return self.predict(shared, personal, x)
        return self.task.predict(self.personalize(shared, personal), x)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """A weighted sum of contributions, the one thing that is ever added up: a commutative monoid (up to rounding)."""

    total: Tree
    weight: float
    clients: int
    metrics: Tree = field(default_factory=dict)

    @classmethod
    def of(cls, result: ClientResult, weight: float) -> Tally:
        """The tally of one client."""
        return cls(total=scale(result.contribution, weight), weight=weight, clients=1, metrics=scale(result.metrics, weight))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            total=add(self.total, other.total),
            weight=self.weight + other.weight,
            clients=self.clients + other.clients,
            metrics=add(self.metrics, other.metrics),
        )

    def mean(self) -> Tree:
        """The weighted mean of the contributions."""
        if not self.weight > 0:
            raise SimulationError(
                f"The {self.clients} contributions of this round weigh {self.weight} in all, so they have no mean.",
                hint="Leave out clients without training examples (min_examples).",
            )
        return tree_map(lambda t: t / self.weight, self.total)
