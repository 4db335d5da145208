"""What a node tells of its models rests on its own examples alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from freehold.core import Round
from freehold.data.heart import heart_records
from freehold.node.program import Program, load
from freehold.study.federated import federated_plan
from freehold.wire.messages import DIFFERING
from tests.warm import specified


def test_the_examples_on_which_two_models_differ_are_counted(tmp_path: Path) -> None:
    plan = specified(federated_plan("heart", "fedavg", companions=[], rounds=3))
    path = tmp_path / "cleveland.csv"
    heart_records()["Cleveland"].write_csv(path)
    program = Program(plan, "cleveland", load(plan, "cleveland", path))
    algorithm = program.algorithm(0)
    shared = algorithm.broadcast(algorithm.init())
    for index in range(3):  # nobody else is there, but what is trained alone begins elsewhere
        shared = program.train(0, Round(index, 1, 1), shared, algorithm.enroll(shared))[0].contribution
        shared = algorithm.broadcast(algorithm.server_update(Round(index, 1, 1), algorithm.init(), shared))
    found, alone, _ = program.measure(0, shared, algorithm.enroll(shared))
    sums, other = found.sums["test"].sums, alone.sums["test"].sums
    assert len(found.right) == found.sums["test"].examples
    assert found.right.sum() == sums["correct"] and alone.right.sum() == other["correct"]
    assert sums[DIFFERING] == np.sum(found.right.numpy() ^ alone.right.numpy())
    assert abs(sums["correct"] - other["correct"]) <= sums[DIFFERING] <= found.sums["test"].examples
    assert DIFFERING not in other
    again, _, _ = program.measure(0, shared, algorithm.enroll(shared))
    assert torch.equal(again.right, found.right)
