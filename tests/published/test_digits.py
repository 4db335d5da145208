"""Digits with strong label skew: what the client that is worst off gains by a model of its own."""

from __future__ import annotations

import os

import pytest

import freehold
from freehold.report import to_json
from freehold.study import Settings


@pytest.mark.parametrize(
    "seeds",
    [1, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],  # a minute alone, more beside others
)
def test_finetuning_and_ditto_lift_the_worst_client_by_ten_points_over_training_alone(seeds: int) -> None:
    found = to_json(
        freehold.compare(
            "digits",
            clients=20,
            partition="dirichlet:0.1",
            seeds=seeds,
            algorithms=["local", "fedavg-finetuned", "ditto"],
            settings=Settings(jobs=min(seeds, 2, os.cpu_count() or 1)),
        )
    )
    worst = {row["name"]: row["worst"] for row in found["rows"]}  # type: ignore[attr-defined]
    assert min(worst["fedavg-finetuned"], worst["ditto"]) - worst["local"] >= 0.10, worst
