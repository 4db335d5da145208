"""`python -m tests.unit.study.killed`: for each line of JSON on standard input, a fork that runs a cell until it dies.

A line says `folder`, `failpoints` and `in_memory` (bytes of states that stay there). The answer is how it ended.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from freehold.data import Prepared
from freehold.data.prepare import tensors
from freehold.failpoints import arm
from freehold.plan import RoundPolicy, Training
from freehold.study import cell as cells
from freehold.study import plan_for, states
from freehold.study.cell import Cell, CellResult, run_cell
from freehold.study.checkpoint import Checkpoint
from freehold.study.settings import Settings, Trial
from freehold.tasks import task_definition

CLIENTS = 6
ROUNDS = 9


def data() -> Prepared:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(CLIENTS * 30, 4)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5, 0.0] > 0).astype(np.int64)
    parts = {"train": (0, 15), "validation": (15, 20), "test": (20, 30)}
    rows = {f"c {i}/": {name: np.arange(a, b, dtype=np.int64) + 30 * i for name, (a, b) in parts.items()} for i in range(CLIENTS)}
    return tensors(x, y, rows, feature_names=tuple("pqrs"), classes=("no", "yes"))


def ran(folder: Path | None, *, algorithm: str = "ditto", resume: bool = False, stop_after: int = ROUNDS) -> CellResult:
    """A cell that saves after each round; Interrupted where it is stopped before its end. Models go beside the checkpoint."""
    definition, done = task_definition("tabular"), [0]
    training = Training(rounds=ROUNDS, batch_size=8, epochs=1)
    plan = plan_for(definition, algorithm, training=training, hyperparameters={"*": {"lr": 0.3}})
    plan = msgspec.structs.replace(plan, round=RoundPolicy(cohort=3))

    def closed(number: int) -> None:
        done[0] = number

    return run_cell(
        Cell(index=0, trial=Trial(name=algorithm, title=algorithm, plan=plan), seed=0),
        definition, data(), settings=Settings(resume=resume), newcomers=("c 5/",),
        checkpoint=Checkpoint(folder=folder / "kept") if folder else None,
        stop=lambda: done[0] >= stop_after, closed=closed, models=folder / "models" if folder else None,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(cells, "SAVE_EVERY_S", -1.0)
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            patch.setattr(states, "IN_MEMORY_BYTES", told["in_memory"])
            arm(told["failpoints"])
            ran(Path(told["folder"]))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
