"""A task of a given size and an algorithm that does next to nothing, as a plug-in package: what is left is the federation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from freehold.core import Algorithm, ClientResult, Round, Steps, Task, Tree, tree_map
from freehold.data import Prepared
from freehold.tasks import TaskDefinition, classifier, task_definition

SIZES = {
    "bench-10kb": 10_000,
    "bench-1mb": 1_000_000,
    "bench-5mb": 5_000_000,
    "bench-50mb": 50_000_000,
    "bench-1gb": 1_000_000_000,
}
TENSORS = 10


def trivial(task: Task) -> Algorithm:
    """The same step for every client, whatever its data."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        return ClientResult(tree_map(lambda t: t * 2**-10 + 2**-10, shared), {})

    return Algorithm(name="trivial", task=task, init=lambda: task.init, client_update=client_update)


def _sized(name: str) -> TaskDefinition:
    def build(prepared: Prepared, seed: int) -> Task:
        each = SIZES[name] // 4 // TENSORS
        weights = {f"w{i}": torch.zeros(each) for i in range(TENSORS)}
        return replace(classifier(prepared, seed), init=weights)

    return replace(task_definition("heart"), name=name, build=build)


def small() -> TaskDefinition:
    """10 kB."""
    return _sized("bench-10kb")


def medium() -> TaskDefinition:
    """1 MB."""
    return _sized("bench-1mb")


def five() -> TaskDefinition:
    """5 MB."""
    return _sized("bench-5mb")


def middle() -> TaskDefinition:
    """50 MB."""
    return _sized("bench-50mb")


def large() -> TaskDefinition:
    """1 GB."""
    return _sized("bench-1gb")


def install(folder: Path) -> Path:
    """Announce all of it as a package in `folder`, which is to be on PYTHONPATH."""
    information = folder / "freehold_bench-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: freehold-bench\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[freehold.algorithms]\ntrivial = benchmarks.trivial:trivial\n\n[freehold.tasks]\n"
        "bench-10kb = benchmarks.trivial:small\nbench-1mb = benchmarks.trivial:medium\n"
        "bench-5mb = benchmarks.trivial:five\nbench-50mb = benchmarks.trivial:middle\nbench-1gb = benchmarks.trivial:large\n"
    )
    return folder
