"""How the cost of a round grows: with the clients that are asked, with the population, and over two processes."""

from __future__ import annotations

import importlib.util
import inspect
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.simulation.contender import timed
from benchmarks.simulation.ours import Ours
from benchmarks.simulation.works import WORKLOADS, Ready, ready, sizes
from freehold.core import train
from freehold.engines import Feed, VectorEngine

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


def processes(rounds: int = 5) -> dict[str, Any]:
    """Seconds on the wall of a W1b round with one and two processes; a line where this version has one process only."""
    if importlib.util.find_spec("freehold.engines.processes") is None:
        return {"missing": "this version's engine works in one process"}
    engine = getattr(importlib.import_module("freehold.engines.processes"), "ProcessEngine", None)
    if engine is None or "processes" not in inspect.signature(engine).parameters:
        return {"missing": "this benchmark does not know this version's engine of several processes"}
    made = ready(WORKLOADS["W1b-E5"])
    found: dict[int, list[float]] = {1: [], 2: []}
    engines = {count: engine(made.algorithm, made.feed, made.work, processes=count) for count in found}
    try:
        runs = {count: train(made.algorithm, each, made.clients, rounds=rounds + 1) for count, each in engines.items()}
        for turn in range(rounds + 1):
            for count, running in runs.items():
                began = time.perf_counter()
                next(running)
                if turn:
                    found[count].append(time.perf_counter() - began)
    finally:
        for each in engines.values():
            each.close()
    one, two = (statistics.median(found[count]) for count in (1, 2))
    return {"wall_s": {"1": one, "2": two}, "speedup": one / two}


def run() -> dict[str, Any]:
    """All three."""
    points = asked()
    return {"asked": points, "slope": slope(points), "population": population(), "processes": processes()}
