"""FLamby's Fed-Heart-Disease tables, reproduced by the command that the README names (its five seeds, a minute or two)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(1300)  # two minutes alone, more beside others


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("flamby") / "out.json"
    command = [str(Path(sys.executable).with_name("freehold")), "compare", "heart", "--protocol", "flamby", "--json", str(out)]
    state = tmp_path_factory.mktemp("state")
    subprocess.run([*command, "--jobs", "1", "--checkpoint", str(state)], check=True, capture_output=True, timeout=1200)
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


TABLE = ("Pooled", "Local", "FedAvg", "FedProx", "SCAFFOLD", "FedAdam", "FedYogi", "FedAdagrad")


@pytest.mark.parametrize("name", TABLE)
def test_each_mean_is_the_published_one(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert abs(row["mean"] - row["published"]) <= 0.015
    assert [seed["seed"] for seed in row["seeds"]] == [42, 43, 44, 45, 46]
    assert set(row["per_client"]) == {"Cleveland", "Hungary", "Switzerland", "VA Long Beach"}


def test_the_rows_stand_in_the_published_order(rows: dict[str, dict[str, Any]]) -> None:
    pooled, yogi, adam, avg, scaffold = (rows[n]["mean"] for n in ("Pooled", "FedYogi", "FedAdam", "FedAvg", "SCAFFOLD"))
    assert pooled > yogi >= adam > max(avg, scaffold)


def test_finetuning_gains_what_was_published(rows: dict[str, dict[str, Any]]) -> None:
    before, after = rows["FedAvg, lr 0.00316"]["mean"], rows["FedAvg+finetuning"]["mean"]
    assert 0 <= after - before <= 0.035
    assert 0.72 <= after <= 0.755
