"""`freehold demo`: from nothing to a report, and nothing left of it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.programs import Running, freehold, left_behind, short_folder


@pytest.fixture
def home() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def test_the_demo_runs_four_hospitals_and_leaves_nothing_behind(home: Path) -> None:
    page, data = home / "report.html", home / "report.json"
    done = freehold(home, "demo", "--rounds", "2", "--seeds", "1", "--report", page, "--json", data)
    assert done.returncode == 0, done.stderr
    for said in (
        "chol = 0 in 123 of 123 rows",
        "4 nodes joined",
        "8 rounds in",
        "A round took",
        "can reveal records to who sees them",
    ):
        assert said in done.stdout
    assert re.search(r"level (strict|standard|basic)\. At its start each node tried [1-9]\d ways out: ", done.stdout)
    stopped = "raised PermissionError.\n      Nothing left the hospital but the number 306"
    assert stopped in done.stdout or "its sandbox has no namespaces" in done.stdout
    for name in ("cleveland", "hungary", "switzerland", "va-long-beach"):
        assert re.search(rf"^{name} +[1-9]\d lines +8, ", done.stdout, re.MULTILINE)
    told = json.loads(data.read_text(encoding="utf-8"))
    names = [row["name"] for row in told["rows"]]
    assert names == ["local", "fedavg", "fedavg-finetuned", "fedavg-intercept", "ditto", "select"]
    assert {client["name"] for client in told["clients"]} == {"cleveland", "hungary", "switzerland", "va-long-beach"}
    assert "<html" in page.read_text(encoding="utf-8")
    assert left_behind(home) == []
    assert not list((home / "tmp").glob("freehold-*"))


@pytest.mark.parametrize(
    ("said", "number"),
    [("joined, mutual TLS", signal.SIGINT), ("Four hospitals, their own", signal.SIGTERM)],
    ids=["int", "term"],
)
def test_an_interrupted_demo_leaves_nothing_behind(home: Path, said: str, number: signal.Signals) -> None:
    demo = Running(home, "demo", "--report", home / "report.html")
    demo.wait_for(said)
    assert demo.stop(number) == 130
    assert left_behind(home) == []
    assert not list((home / "tmp").glob("freehold-*"))


def test_options_of_the_simulation_are_refused(home: Path) -> None:
    done = freehold(home, "demo", "--jobs", "2")
    assert done.returncode == 2
    assert "--simulated" in done.stderr
