"""How the cost of a round grows: with the clients that are asked, with the population, and over two processes."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.simulation.contender import timed
from benchmarks.simulation.ours import Ours
from benchmarks.simulation.timing import ratio
from benchmarks.simulation.works import WORKLOADS, Ready, algorithm_of, ready, sizes, task_of
from freehold.core import train
from freehold.engines import Feed, VectorEngine, Work
from freehold.engines.processes import Processes

ASKED = (100, 1000, 10_000, 100_000)
POPULATIONS = (1000, 10_000, 100_000, 1_000_000)
COHORT = 100
TABLE = 5000
"""Rows that clients share among them, so that memory is that of the clients and not of their data."""


class Many(Mapping[str, Mapping[str, Tensor]]):
    """As many clients as one likes: whose rows are whose follows from the name."""

    def __init__(self, clients: int, mean: int) -> None:
        """Sizes are those of the work."""
        self._sizes, self._clients = sizes(min(clients, 10_000), mean), clients
        self._nobody = torch.zeros(0, dtype=torch.int64)

    def __getitem__(self, client: str) -> Mapping[str, Tensor]:
        """A stretch of the table."""
        number = int(client)
        size = self._sizes[number % len(self._sizes)]
        begin = number * 37 % (TABLE - size)
        return {"train": torch.arange(begin, begin + size), "validation": self._nobody, "test": self._nobody}

    def __iter__(self) -> Iterator[str]:
        return (f"{i}" for i in range(self._clients))

    def __len__(self) -> int:
        return self._clients


def populated(clients: int, work: str = "W1a") -> Ready:
    """The work with that many clients over one table."""
    made = ready(replace(WORKLOADS[work], clients=100))
    few = WORKLOADS[work].samples
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(TABLE, *made.feed.x.shape[1:], generator=draws)
    y = torch.randint(10, (TABLE,), generator=draws)
    return replace(made, feed=Feed(x=x, y=y, rows=Many(clients, few), seed=made.feed.seed))


def asked(clients: Sequence[int] = ASKED) -> list[dict[str, float]]:
    """Processor time of a round in which all of so many clients are asked: the median of three, of one from 100,000 on."""
    points = []
    for count in clients:
        ours = Ours(populated(count))
        ours.round(0)
        seconds = statistics.median(ours.round(1 + i) for i in range(1 if count >= 100_000 else 3))
        points.append({"clients": count, "cpu_s": seconds, "cpu_ms_each": 1000 * seconds / count})
    return points


def population(counts: Sequence[int] = POPULATIONS, cohort: int = COHORT) -> list[dict[str, float]]:
    """Processor time of a round of `train` that asks so many of a population; drawing the cohort is part of it."""
    points = []
    for count in counts:
        made = populated(count)
        rounds = train(made.algorithm, VectorEngine(made.algorithm, made.feed, made.work), made.clients, rounds=10, cohort=cohort)
        next(rounds)
        seconds = statistics.median(timed(made.device, lambda rounds=rounds: next(rounds)) for _ in range(5))
        points.append({"population": count, "cohort": cohort, "cpu_s": seconds})
    return points


def slope(points: Sequence[Mapping[str, float]]) -> float:
    """Of the logarithm of cost over that of clients: 1 is linear."""
    logs = [[math.log(p[key]) for p in points] for key in ("clients", "cpu_s")]
    return float(statistics.linear_regression(*logs).slope)


class Built(NamedTuple):
    """Makes a worker's engine of a workload there."""

    work: str

    def __call__(self, feed: Feed) -> VectorEngine:
        """Over the table that all workers see."""
        workload = WORKLOADS[self.work]
        work = Work(batch_size=workload.batch, epochs=workload.epochs)
        return VectorEngine(algorithm_of(workload, task_of(workload)), feed, work)


def processes(work: str = "W1b-E5", rounds: int = 9) -> dict[str, Any]:
    """Seconds on the wall of a round with one and two processes, in turn; a line where there is one core only."""
    if len(os.sched_getaffinity(0)) < 2:
        return {"missing": "this machine lends one core only"}
    made = ready(WORKLOADS[work])
    seconds: dict[int, list[float]] = {1: [], 2: []}
    crews = {count: Processes(count) for count in seconds}
    try:
        engines = {count: crew.engine(made.algorithm, made.feed, Built(work)) for count, crew in crews.items()}
        runs = {count: train(made.algorithm, engine, made.clients, rounds=rounds + 1) for count, engine in engines.items()}
        for turn in range(rounds + 1):
            for count, running in runs.items():
                began = time.perf_counter()
                next(running)
                if turn:
                    seconds[count].append(time.perf_counter() - began)
    finally:
        for crew in crews.values():
            crew.close()
    return {"work": work, "seconds": {f"{count}": times for count, times in seconds.items()}, **speedup(seconds[1], seconds[2])}


def speedup(one: Sequence[float], two: Sequence[float]) -> dict[str, float]:
    """How many times as fast two are, with its interval."""
    found = ratio(one, two)
    return {"speedup": found.ratio, "low": found.low, "high": found.high}


def run() -> dict[str, Any]:
    """All three."""
    points = asked()
    return {"asked": points, "slope": slope(points), "population": population(), "processes": processes()}
