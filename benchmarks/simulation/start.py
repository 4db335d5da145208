"""What a user waits for: from typing `freehold simulate` to the end of the first round of W1b, and the most memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from benchmarks.federation import ROOT
from benchmarks.peers.environment import Missing
from benchmarks.simulation.networks import mlp
from benchmarks.simulation.peer import PEERS, python, spent, working
from benchmarks.simulation.works import WORKLOADS, ready, sizes
from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, Round, Task, Tree, task_from
from freehold.data import Population, Prepared
from freehold.plan import AlgorithmRef, Training, dumps
from freehold.study import plan_for
from freehold.tasks import TaskDefinition, task_definition

NOTED = "FREEHOLD_BENCH_NOTED"
"""Names the file to which the end of the first round is written."""
RUNS = 3


def first(task: Task, *, lr: float = 0.05) -> Algorithm:
    """FedAvg that notes when its first round is over."""
    made = fedavg(task, lr=lr)

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        path = os.environ.get(NOTED)
        if path and not os.path.exists(path):
            Path(path).write_text(f"{time.time()} {time.process_time()}", encoding="utf-8")
        return made.server_update(round, server, mean)

    return replace(made, name="first", server_update=server_update)


def definition() -> TaskDefinition:
    """W1b as a task with data of its own."""
    return replace(
        task_definition("digits"),
        name="bench-mlp",
        title="784-200-10, made up",
        build=_build,
        load=_population,
        training=Training(rounds=1, batch_size=10, epochs=1),
        min_examples=2,
    )


def _build(prepared: Prepared, seed: int) -> Task:
    torch.manual_seed(seed)
    return task_from(mlp(), nn.functional.cross_entropy, classes=10)


def _population() -> Population:
    # A fifth goes to validation and a fifth to test, so that what is left is W1b.
    counts = [count * 5 // 3 + 5 for count in sizes(WORKLOADS["W1b"].clients, WORKLOADS["W1b"].samples)]
    draws = np.random.default_rng(0)
    rows = sum(counts)
    return Population(
        name="bench-mlp",
        features=draws.standard_normal((rows, 784), dtype=np.float32),
        target=draws.integers(0, 10, rows),
        client=np.repeat([f"c{i}" for i in range(len(counts))], counts),
        schema=None,
        classes=tuple("0123456789"),
    )


def install(folder: Path) -> Path:
    """Announce both as a package in `folder`, which is to be on PYTHONPATH."""
    information = folder / "freehold_bench_start-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: freehold-bench-start\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[freehold.algorithms]\nfirst = benchmarks.simulation.start:first\n\n"
        "[freehold.tasks]\nbench-mlp = benchmarks.simulation.start:definition\n"
    )
    return folder


def ours() -> dict[str, float]:
    """One run of the command: seconds to the end of the first round, on the wall and of the processor; and of all of it."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as name:
        folder = Path(name)
        noted = folder / "noted"
        path = [str(install(folder / "plugin")), str(ROOT), os.environ.get("PYTHONPATH", "")]
        surroundings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            NOTED: str(noted),
            "XDG_STATE_HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        plan = plan_for(definition(), "fedavg", hyperparameters={"fedavg": {"lr": 0.05}})
        plan = msgspec.structs.replace(plan, algorithm=AlgorithmRef(name="first", hyperparameters=plan.algorithm.hyperparameters))
        (folder / "plan.toml").write_text(dumps(plan), encoding="utf-8")
        told = ["simulate", "plan.toml", "--jobs", "1"]  # no companions: what is waited for is a round of this
        began = time.time()
        child = subprocess.Popen(
            [sys.executable, "-m", "freehold.cli", *told],
            cwd=folder,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode or not noted.exists():
            raise SystemExit(f"freehold {' '.join(told)} exited with {child.returncode}")
        ended, cpu = (float(figure) for figure in noted.read_text(encoding="utf-8").split())
        return {
            "first_round_s": round(ended - began, 3),
            "first_round_cpu_s": round(cpu, 3),
            "command_cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_mb": round(usage.ru_maxrss / 1024, 1),
        }


def flower() -> dict[str, float]:
    """The same of Flower, from the start of its process to the end of the first round."""
    peer, made = PEERS["flwr"], ready(WORKLOADS["W1b"])
    python(peer)  # installing it is not in the time
    began = time.time()
    with working(peer, made) as worker:
        worker.round(0)
        return {
            "first_round_s": round(time.time() - began, 3),
            "first_round_cpu_s": round(sum(spent(worker.process.pid).values()), 3),
            "peak_mb": round(worker.peak_mb(), 1),
        }


def run(with_flower: bool) -> dict[str, Any]:
    """The median of three of ours, by the time to the first round; Flower's once."""
    found: dict[str, Any] = {"freehold": sorted((ours() for _ in range(RUNS)), key=lambda one: one["first_round_s"])[RUNS // 2]}
    if with_flower:
        try:
            found["flwr"] = flower()
        except Missing as why:
            found["flwr"] = {"missing": str(why)}
    return found
