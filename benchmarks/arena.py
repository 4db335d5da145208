"""Personal states of a million clients: moved by the cohort, in an arena and in memory; and what a round costs by population.

Each measurement is a process of its own with one thread; times are processor time. Arena and memory take turns in one process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POPULATIONS = (1_000, 100_000, 1_000_000)
COHORT, TIMES, TURNS = 100, 100, 3
MB = 1 << 20


def run(populations: tuple[int, ...] = POPULATIONS, turns: int = TURNS) -> dict[str, Any]:
    """By population: moving states, then whole rounds; medians over the turns."""
    found: dict[str, Any] = {}
    for population in populations:
        found[f"{population} states"] = _measured("states", population)
    taken: dict[int, list[dict[str, float]]] = {population: [] for population in populations}
    for _ in range(turns):
        for population, each in taken.items():
            each.append(_measured("round", population))
    for population, each in taken.items():
        found[f"{population} rounds"] = {key: statistics.median(one[key] for one in each) for key in each[0]} | {
            "round_ms_spread": [round(extreme(one["round_ms"] for one in each), 2) for extreme in (min, max)]
        }
    return found


def _measured(what: str, population: int) -> dict[str, Any]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.arena", what, str(population)]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return answer


def states(population: int) -> dict[str, Any]:
    """Every client written once, a cohort at a time in a random order; then cohorts read and written again, beside a store in
    memory that has the same cohorts only; then a checkpoint, and the arena opened again."""
    import torch

    from freehold.engines import Arena, PersonalStore

    like = {"w": torch.zeros(50, 40), "b": torch.zeros(50), "v": torch.zeros(10, 45)}  # 10 kB
    clients = [f"client {i}" for i in range(population)]
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR", "/var/tmp")) as folder:
        place = Path(folder) / "arena"
        arena = Arena.create(place, clients, lambda shared: like, like=like)
        order = random.Random(0).sample(clients, population)
        new = {k: torch.ones(COHORT, *t.shape) for k, t in like.items()}
        for start in range(0, population - population % COHORT, COHORT):
            with _timed(taken, "arena_first_scatter_ms"):
                arena.scatter(order[start : start + COHORT], new)
            arena.settle(counted=True)
        with _timed(taken, "checkpoint_of_all_cpu_ms"):
            arena.keep(arena.seal())
        memory = PersonalStore(lambda shared: like)
        for turn in range(2 * TIMES):
            asked = random.Random(turn % TIMES).sample(clients, COHORT)
            for name, store in (("arena", arena), ("memory", memory)):
                said = name if turn >= TIMES else f"warming_{name}"  # the first time memory has nobody
                with _timed(taken, f"{said}_gather_ms"):
                    found = store.gather(asked, {})
                with _timed(taken, f"{said}_scatter_ms"):
                    store.scatter(asked, found)
                store.settle(counted=True)
        with _timed(taken, "checkpoint_of_changes_cpu_ms"):
            sealed = arena.seal()
        told: dict[str, Any] = {key: round(statistics.median(each), 3) for key, each in taken.items() if "warming" not in key}
        told |= {
            key.replace("_ms", "_p90_ms"): round(statistics.quantiles(each, n=10)[-1], 3)
            for key, each in taken.items()
            if key in ("arena_gather_ms", "arena_scatter_ms")
        }
        told["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        told["disk_mb"] = round(sum(file.stat().st_blocks for file in place.iterdir()) * 512 / MB)
        arena.close()
        with _timed({}, "") as began:
            Arena.open(place, clients, lambda shared: like, like=like, at=sealed).close()
        told["open_cpu_s"] = round(time.process_time() - began, 2)
    return told


def rounds(population: int) -> dict[str, float]:
    """Rounds of Ditto, a cohort of 100 of so many clients with four examples each, states in an arena."""
    import numpy as np
    import torch

    from freehold.algorithms import build_algorithm
    from freehold.core import train
    from freehold.data.prepare import tensors
    from freehold.drawing import draw_cohort
    from freehold.engines import Arena, Feed, VectorEngine, Work, state_bytes
    from freehold.study import plan_for
    from freehold.tasks import build_task, task_definition

    torch.set_num_threads(1)
    began = time.process_time()
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(4 * population, 10)).astype(np.float32)
    none = np.empty(0, dtype=np.int64)
    rows = {f"client {i}": {"train": np.arange(4 * i, 4 * i + 4), "validation": none, "test": none} for i in range(population)}
    data = tensors(x, (x[:, 0] > 0).astype(np.int64), rows, feature_names=tuple("abcdefghij"), classes=("no", "yes"))
    del rows
    definition = task_definition("tabular")
    plan = plan_for(definition, "ditto")
    algorithm = build_algorithm(build_task(definition, data, plan, 0), plan.algorithm)
    engine = VectorEngine(algorithm, Feed(x=data.x, y=data.y, rows=data.rows), Work(batch_size=4, epochs=1))
    like = algorithm.enroll(algorithm.broadcast(algorithm.init()))
    engine.store = arena = Arena.temporary(data.clients, algorithm.enroll, like=like, asked=COHORT * TIMES)
    taken: dict[str, list[float]] = {}
    prepared = time.process_time() - began
    running = train(algorithm, engine, data.clients, rounds=TIMES // 2, cohort=COHORT)
    for index in range(TIMES // 2):
        with _timed(taken, "round_ms"):
            next(running)
        with _timed(taken, "draw_ms"):
            draw_cohort(data.clients, COHORT, seed=0, index=index)
    running.close()
    arena.close()
    return {
        "round_ms": round(statistics.median(taken["round_ms"][5:]), 2),
        "draw_ms": round(statistics.median(taken["draw_ms"]), 3),
        "state_bytes": state_bytes(like),
        "prepare_cpu_s": round(prepared, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


@contextmanager
def _timed(taken: dict[str, list[float]], name: str) -> Iterator[float]:
    began = time.process_time()
    yield began
    taken.setdefault(name, []).append(1000 * (time.process_time() - began))


if __name__ == "__main__":
    what, size = sys.argv[1:]
    work: dict[str, Callable[[int], dict[str, Any]]] = {"states": states, "round": rounds}
    sys.stdout.write(json.dumps(work[what](int(size))) + "\n")
