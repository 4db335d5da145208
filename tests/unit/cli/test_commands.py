"""The commands on good input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.cli.invocation import program
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


def test_a_file_with_text_and_missing_cells_is_checked_and_the_flags_are_said(tmp_path: Path) -> None:
    rows = [f"{site},{n % 7}.5,{'abc'[n % 3]},{n if n % 9 else ''},{n % 2}" for site in ("s", "t") for n in range(40)]
    source = tmp_path / "my.csv"
    source.write_text("\n".join(["site,a,kind,b,y", *rows]) + "\n", encoding="utf-8")
    done = freehold("data", "check", str(source), *COLUMNS, "--json")
    assert done.returncode == 1, done.stderr
    errors = {each["column"]: each["text"] for each in json.loads(done.stdout) if each["level"] == "error"}
    assert errors["kind"].endswith("add --categorical kind") and errors["b"].endswith("add --impute b")
    shown = freehold("data", "check", str(source), *COLUMNS).stdout
    assert "The columns can be read with: --categorical kind --impute b" in shown
    helped = freehold("data", "check", str(source), *COLUMNS, "--categorical", "kind", "--impute", "b")
    assert helped.returncode == 0


def test_a_file_of_decimal_commas_is_refused_with_what_to_do(tmp_path: Path) -> None:
    source = tmp_path / "my.csv"
    source.write_text("site;a;y\n" + "".join(f"s;{n},5;{n % 2}\n" for n in range(30)), encoding="utf-8")
    done = freehold("data", "check", str(source), *COLUMNS)
    assert done.returncode == 2
    assert "decimal points" in done.stderr and "--drop" not in done.stderr


def test_data_check_counts_small_clients_as_compare_does(tmp_path: Path) -> None:
    source = table(tmp_path / "my.csv", words)
    with source.open("a", encoding="utf-8") as file:
        file.write("tiny,0.1,0.2,0,ill\n")
    checked = freehold("data", "check", str(source), *COLUMNS)
    compared = freehold("compare", str(source), *COLUMNS, *SHORT)
    assert checked.returncode == 1 and "1 example, but" in checked.stdout
    assert compared.returncode == 2 and "error 205" in compared.stderr
    assert all("--min-examples" in text and "--devices" in text for text in (checked.stdout, compared.stderr))


def test_what_data_check_finds_stands_above_the_tables(tmp_path: Path) -> None:
    source = table(tmp_path / "my.csv", words)
    found = "junk counts the rows"
    text = source.read_text(encoding="utf-8").splitlines()
    counted = [text[0], *(",".join([*line.split(",")[:3], str(n), line.split(",")[4]]) for n, line in enumerate(text[1:]))]
    source.write_text("\n".join(counted) + "\n", encoding="utf-8")
    assert found in freehold("data", "check", str(source), *COLUMNS).stdout
    shown = freehold("compare", str(source), *COLUMNS, *SHORT).stdout
    assert shown.index(found) < shown.index("By client")


def test_a_written_plan_gives_the_same_numbers_again(tmp_path: Path) -> None:
    source, plan = table(tmp_path / "my.csv", words), tmp_path / "plan.toml"
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    options = ("--rounds", "2", "--seeds", "2", "--algorithm", "fedavg", "--jobs", "1")
    data = ("--drop", "junk", *COLUMNS)
    wrote = freehold("simulate", str(source), *data, *options, "--write-plan", str(plan), "--json", str(first))
    assert f"Written: {plan}" in wrote.stderr
    refused = freehold("simulate", str(plan))
    assert "--data" in refused.stderr and "--client-column" in refused.stderr
    again = freehold("simulate", str(plan), "--data", str(source), *data, "--json", str(second), "--jobs", "1")
    assert again.returncode == 0, again.stderr
    assert "with FedAvg" in again.stdout or "whether FedAvg" in again.stdout
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in (first, second))
    assert one["seeds"] == other["seeds"] == [0, 1]
    assert [row["per_client"] for row in one["rows"]] == [row["per_client"] for row in other["rows"]]


def test_balanced_accuracy_stays_in_eighty_columns(tmp_path: Path) -> None:
    done = freehold("compare", str(table(tmp_path / "my.csv", words)), *COLUMNS, *SHORT)
    assert "balanced" in done.stdout.split("Not shown")[0]


def test_the_program_is_called_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "freehold"
    there.write_text("#!/bin/sh\n", encoding="utf-8")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert program(str(there)) == [str(there)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program(str(there)) == ["freehold"]
    assert program("/x/freehold/cli/__main__.py")[1:] == ["-m", "freehold.cli"]
