"""What the doctor says of folders, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from freehold.cli.program import app


def checks(*arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    """What was looked at -> level, what was found, hint."""
    done = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return {each["what"]: each for each in json.loads(done.stdout)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "freehold").mkdir()
    return tmp_path / "freehold"


def test_an_empty_home_has_neither_node_nor_coordinator(home: Path) -> None:
    found = checks()["state"]
    assert (found["level"], found["found"]) == ("warning", f"no node and no coordinator in {home}")
    assert "freehold node start" in found["hint"]


def test_a_node_that_was_never_made_is_an_error(home: Path) -> None:
    assert checks("--name", "zoe", code=1)["state node-zoe"]["found"] == f"there is no {home / 'node-zoe'}"


def test_a_node_whose_joining_failed_is_told_how_to_go_on(home: Path) -> None:
    (home / "node-zoe" / "identity").mkdir(mode=0o700, parents=True)
    (home / "node-zoe" / "identity" / "joining-00000000.key").touch(mode=0o600)
    found = checks()["certificate node-zoe"]
    assert (found["level"], found["found"]) == ("warning", "joining has begun, and did not come to its end")
    assert "--join-file" in found["hint"]


def test_a_node_that_has_not_joined_and_one_that_has_left(home: Path) -> None:
    for name in ("yan", "zoe"):
        (home / f"node-{name}").mkdir(mode=0o700)
    (home / "node-zoe" / "left.json").write_text("{}")
    found = checks()
    assert (found["certificate node-yan"]["level"], found["certificate node-zoe"]["level"]) == ("warning", "good")
    assert "has left" in found["certificate node-zoe"]["found"]


def test_a_coordinator_needs_no_certificate_of_a_node(home: Path) -> None:
    (home / "coordinator").mkdir(mode=0o700)
    assert "certificate coordinator" not in checks()


def test_an_address_without_a_scheme_has_a_hint(home: Path) -> None:
    found = checks("--coordinator", "localhost:8443", code=1)["address"]
    assert found["hint"] == "Say https://localhost:8443."
