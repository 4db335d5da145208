"""What an algorithm costs, measured: a few rounds of it on a small network, with traffic, gradients and arithmetic counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from freehold.core import (
    Algorithm,
    AlgorithmEntry,
    Batch,
    Objective,
    Privacy,
    Round,
    Seen,
    State,
    Steps,
    Task,
    Tree,
    algorithm_entry,
    private,
    task_from,
)
from freehold.core.registry import Value
from freehold.core.seeding import generator
from freehold.core.trees import flatten, leaves
from freehold.errors import NotPrivate

T = TypeVar("T")

STEPS = 10
"""Local steps of a round that is measured; work that is done once in a round weighs less the more steps there are."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one round costs, in multiples of the model's numbers, or of what FedAvg does.

    Measured on a network of 34,506 parameters (64-256-64-10, LayerNorm) with 10 steps of 8 examples, in the second round.
    """

    download: float
    """Numbers sent to each client, in models."""
    upload: float
    """Numbers that each client sends, in models."""
    server: float
    """Numbers that the server keeps, in models."""
    personal: float
    """Numbers that a client keeps from round to round, in models."""
    gradients: float
    """Gradient evaluations per local step; FedAvg: 1."""
    compute: float
    """Arithmetic of a client's round (multiplications in matrix products), in rounds of FedAvg."""
    adapting: float
    """Arithmetic of a client before it can predict, in rounds of FedAvg, for as many adaptation steps as local ones."""
    statistics: tuple[str, ...]
    """What a client sends beside differences of model parameters: sums, counts, a vote for a cluster, metrics."""
    secure_aggregation: bool
    """Whether the server needs nothing but the sum over clients."""
    record_privacy: bool
    """Whether it can be trained with record-level differential privacy."""


def costs(entry: AlgorithmEntry, **hyperparameters: Value) -> Costs:
    """Run `entry` for two rounds of one client and count; takes milliseconds. Raises what building it raises."""
    calls, task = _counted(_probe())
    algorithm = entry.build(task, **hyperparameters)
    server = algorithm.init()
    shared = algorithm.broadcast(server)
    first = algorithm.client_update(Round(0, 1, 1), shared, algorithm.enroll(shared), _steps(task, 1))
    server = algorithm.server_update(Round(0, 1, 1), server, first.contribution)
    shared = algorithm.broadcast(server)
    steps, calls[:] = _steps(task, STEPS), ()
    second, spent = _arithmetic(lambda: algorithm.client_update(Round(1, 1, 1), shared, first.personal, steps))
    gradients = len(calls)
    _, adapting = _arithmetic(lambda: algorithm.adapt(shared, second.personal, steps, _steps(task, 2).everything()))
    sent = [path for path in flatten(second.contribution) if path.rsplit("/", 1)[-1] not in task.init]
    return Costs(
        download=_models(shared, task),
        upload=_models(second.contribution, task),
        server=_models(server, task),
        personal=_models(second.personal, task),
        gradients=gradients / STEPS,
        compute=spent / _fedavg(),
        adapting=adapting / _fedavg(),
        statistics=(*sent, *second.metrics),
        secure_aggregation=algorithm.associative,
        record_privacy=_can_be_private(entry, task, hyperparameters),
    )


def _probe() -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = (nn.Linear(64, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
        return task_from(nn.Sequential(*body, nn.Linear(64, 10)), nn.CrossEntropyLoss(), classes=10)


def _steps(task: Task, count: int) -> Steps:
    size, draw = 8 * count, generator("costs")
    dtype = next(iter(task.init.values())).dtype
    return Steps(
        table={"x": torch.randn(size, 64, generator=draw, dtype=dtype), "y": torch.arange(size) % 10},
        rows=torch.arange(size),
        present=torch.ones(size, dtype=torch.bool),
        picks=torch.arange(size).view(count, 8),
        real=torch.ones(count, 8, dtype=torch.bool),
        live=torch.ones(count, dtype=torch.bool),
        keys=torch.arange(count),
        trim=True,
    )


def _counted(task: Task) -> tuple[list[str], Task]:
    """The same task, and a list that grows with each pass in training: a gradient needs one, and nothing else does."""
    calls: list[str] = []

    def losses(state: State, batch: Batch) -> tuple[Tensor, State]:
        calls.append("losses")
        return task.objective.losses(state, batch)

    def run(state: State, batch: Batch, training: bool = False, bend: Callable[[Tensor], Tensor] | None = None) -> Seen:
        if training:  # an algorithm with a loss of its own
            calls.append("run")
        return task.run(state, batch, training=training, bend=bend)

    objective: Objective = replace(task.objective, losses=losses)
    return calls, replace(task, objective=objective, run=run)


def _models(tree: Tree, task: Task) -> float:
    return sum(leaf.numel() for leaf in leaves(tree)) / sum(t.numel() for t in task.init.values())


@functools.cache
def _fedavg() -> float:
    """The arithmetic of a round of FedAvg."""
    task = _probe()
    algorithm: Algorithm = algorithm_entry("fedavg").build(task)
    return _arithmetic(lambda: algorithm.client_update(Round(1, 1, 1), task.init, {}, _steps(task, STEPS)))[1]


def _arithmetic(work: Callable[[], T]) -> tuple[T, int]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return result, counter.get_total_flops()


def _can_be_private(entry: AlgorithmEntry, task: Task, hyperparameters: dict[str, Value]) -> bool:
    try:
        entry.build(private(task, Privacy(max_norm=1.0, noise_multiplier=1.0, expected_batch=8)), **hyperparameters)
    except NotPrivate:
        return False
    return True
