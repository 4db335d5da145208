"""`freehold tune` as a user runs it: what it prints and writes, what it refuses, and that a kill costs no result."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from tests.unit.cli.runs import COLUMNS, PROGRAM, environment, freehold, table, words

SHORT = ("--trials", "3", "--seeds", "2", "--algorithm", "fedavg", "--jobs", "1")


def told(path: Path) -> object:
    """All but the clock and the command."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document["comparison"].pop("command")
    for row in document["comparison"]["rows"]:
        row.pop("seconds")
    return document


def test_the_terminal_and_the_files_say_what_changed(tmp_path: Path) -> None:
    source = table(tmp_path / "my.csv", words)
    files = {name: tmp_path / name for name in ("out.json", "out.html", "won.toml")}
    run = freehold(
        "tune", str(source), *COLUMNS, *SHORT, "--rounds", "2", "--json", str(files["out.json"]),
        "--report", str(files["out.html"]), "--write-plan", str(files["won.toml"]),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "What tuning changed" in run.stdout
    assert "What was chosen, by validation" in run.stdout
    assert "FedAvg" in run.stdout
    assert "Alone" in run.stdout
    assert all(len(line) <= 80 for line in run.stdout.splitlines() if "Written" not in line), run.stdout
    document = json.loads(files["out.json"].read_text(encoding="utf-8"))
    fedavg = document["algorithms"][1]
    assert (document["trials"], len(fedavg["tried"]), document["winner"]) == (3, 3, "fedavg")
    plan = tomllib.loads(files["won.toml"].read_text(encoding="utf-8"))
    assert plan["algorithm"]["hyperparameters"] == fedavg["tried"][fedavg["chosen"]]["hyperparameters"]
    assert "by validation examples alone" in files["out.html"].read_text(encoding="utf-8")
    again = freehold(
        "tune", str(files["won.toml"]), "--data", str(source), *COLUMNS, "--trials", "2", "--seeds", "1", "--jobs", "1"
    )
    assert again.returncode == 0, again.stderr
    assert "FedAvg" in again.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_and_resumed_it_is_bit_equal(tmp_path: Path, how: signal.Signals) -> None:
    source, kept = table(tmp_path / "my.csv", words), tmp_path / "kept"
    base = ["tune", str(source), *COLUMNS, *SHORT, "--rounds", "20"]
    stopped = [*base, "--checkpoint", str(kept), "--json", str(tmp_path / "resumed.json")]
    with subprocess.Popen(
        [*PROGRAM, *stopped], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    ) as run:
        assert run.stderr is not None
        assert "training" in run.stderr.readline()
        deadline = time.monotonic() + 60
        while how is signal.SIGKILL and not list(kept.glob("*/*.json")):  # a cell is done, and the next one is under way
            assert time.monotonic() < deadline, "no cell was finished"
        run.send_signal(how)
        run.stderr.read()
    assert run.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert not (tmp_path / "resumed.json").exists()
    assert list(kept.glob("*/*.json" if how is signal.SIGKILL else "*/*.safetensors")), "nothing was kept"
    resumed = freehold(*stopped, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not list(kept.glob("*")), "a study that is done leaves no checkpoint"
    assert freehold(*base, "--json", str(tmp_path / "whole.json")).returncode == 0
    assert told(tmp_path / "resumed.json") == told(tmp_path / "whole.json")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("heart", "--trials", "0"), 100, "--trials is 0"),
        (("heart", "--algorithm", "dito"), 101, "ditto"),
        (("heart", "--data", "my.csv"), 100, "belong to a plan"),
        (("PLAN.toml", "--lr", "0.1"), 100, "is the plan's to say"),
        (("PLAN.toml", "--algorithm", "ditto"), 100, "is the plan's to say"),
        (("heart", "--resume", "--checkpoint", "nowhere"), 120, "nothing to resume"),
    ],
)
def test_wrong_use_is_refused_with_a_number_and_a_remedy(arguments: tuple[str, ...], code: int, said: str) -> None:
    run = freehold("tune", *arguments)
    assert run.returncode == 2, run.stderr
    assert f"error {code}:" in run.stderr
    assert said in run.stderr
    assert "hint:" in run.stderr
