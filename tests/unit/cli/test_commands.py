"""The commands on good input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.core import algorithm_names
from tests.unit.cli.runs import COLUMNS, SHORT, freehold, number, table, words


def test_help_needs_no_heavy_import() -> None:
    code = "import sys, freehold.cli; print(sorted({'torch', 'numpy', 'polars'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_algorithms_as_json_has_one_object_each() -> None:
    done = freehold("algorithms", "--json")
    assert [each["name"] for each in json.loads(done.stdout)] == list(algorithm_names())


def test_one_algorithm_is_explained() -> None:
    done = freehold("algorithms", "--explain", "ditto")
    assert done.returncode == 0
    assert "Hyper-parameters" in done.stdout
    assert "lam" in done.stdout


@pytest.mark.parametrize(
    "label", [words, lambda a, b: 1 + (a > 0) + (b > 0), number], ids=["names", "labels 1 to 3", "regression"]
)
def test_compare_of_a_file(tmp_path: Path, label: object) -> None:
    source, out = table(tmp_path / "my.csv", label), tmp_path / "out.json"  # type: ignore[arg-type]
    done = freehold("compare", str(source), *COLUMNS, "--drop", "junk", *SHORT, "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {"local", "fedavg"} <= {row["name"] for row in rows}
    assert all({"name", "mean", "worst", "per_client", "seeds"} <= set(row) for row in rows)


def test_devices_that_are_small_are_skipped(tmp_path: Path) -> None:
    source = table(tmp_path / "my.csv", words)
    with source.open("a", encoding="utf-8") as file:
        file.write("tiny,0.1,0.2,0,ill\ntiny,0.3,-0.9,1,well\n")
    options = ("--devices", "--min-examples", "20")
    done = freehold("compare", str(source), *COLUMNS, *options, *SHORT, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    assert "tiny" not in json.dumps([row["per_client"] for row in rows])


def test_check_of_heart_names_the_cholesterol() -> None:
    done = freehold("data", "check", "heart")
    assert done.returncode in (0, 1)
    assert "chol" in done.stdout
