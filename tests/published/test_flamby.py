"""FLamby's Fed-Heart-Disease tables, reproduced by the command that the README names; in CI, the federated rows for one seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freehold.report import to_json
from freehold.study import FlambySplit, Settings, flamby_trials, run_comparison
from freehold.tasks import task_definition

TABLE = ("Pooled", "Local", "FedAvg", "FedProx", "SCAFFOLD", "FedAdam", "FedYogi", "FedAdagrad")


def test_one_published_seed_gives_what_is_published_for_five() -> None:
    """Every row but Pooled and Local, which take most of the time; a seed alone is as near as the mean."""
    definition = task_definition("heart-flamby")
    trials = [trial for trial in flamby_trials(definition) if not trial.pooled and trial.name != "Local"]
    found = run_comparison(
        definition,
        FlambySplit(),
        trials,
        seeds=(42,),
        settings=Settings(jobs=1),
        command="",
        baseline="FedAvg",
        strict=True,
    )
    rows: list[dict[str, Any]] = to_json(found)["rows"]  # type: ignore[assignment]
    means = {row["name"]: (row["mean"], row["published"]) for row in rows}
    assert set(means) == {*TABLE, "FedAvg, lr 0.00316", "FedAvg+finetuning"} - {"Pooled", "Local"}
    assert not {name: pair for name, pair in means.items() if abs(pair[0] - pair[1]) > 0.015}
    yogi, adam, avg, scaffold = (means[n][0] for n in ("FedYogi", "FedAdam", "FedAvg", "SCAFFOLD"))
    assert yogi >= adam > max(avg, scaffold)
    assert 0 <= means["FedAvg+finetuning"][0] - means["FedAvg, lr 0.00316"][0] <= 0.04


@pytest.mark.slow
@pytest.mark.timeout(1300)  # two minutes alone, more beside others
def test_the_published_tables_are_reproduced(tmp_path: Path) -> None:
    """One test, because one run takes minutes: each mean, the order, and what finetuning gains."""
    out = tmp_path / "out.json"
    program = str(Path(sys.executable).with_name("freehold"))
    command = [program, "compare", "heart", "--protocol", "flamby", "--json", str(out), "--checkpoint", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=1200)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(out.read_text())["rows"]}

    means = {name: (row["mean"], row["published"]) for name, row in rows.items() if name in TABLE}
    assert set(means) == set(TABLE)
    assert not {name: pair for name, pair in means.items() if abs(pair[0] - pair[1]) > 0.015}
    assert all([seed["seed"] for seed in row["seeds"]] == [42, 43, 44, 45, 46] for row in rows.values())
    assert all(set(row["per_client"]) == {"Cleveland", "Hungary", "Switzerland", "VA Long Beach"} for row in rows.values())

    pooled, yogi, adam, avg, scaffold = (means[n][0] for n in ("Pooled", "FedYogi", "FedAdam", "FedAvg", "SCAFFOLD"))
    assert pooled > yogi >= adam > max(avg, scaffold)

    before, after = rows["FedAvg, lr 0.00316"]["mean"], rows["FedAvg+finetuning"]["mean"]
    assert 0 <= after - before <= 0.035
    assert 0.72 <= after <= 0.755
