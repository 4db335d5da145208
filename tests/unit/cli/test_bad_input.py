"""Bad input: exit code 2, what was found, what to do, no traceback, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.runs import COLUMNS, SHORT, freehold, number, table, words

CASES: list[tuple[str, list[str], list[str]]] = [
    ("words", ["--client-column", "sitee", "--target", "y"], ["201", "'sitee'", "Did you mean 'site'"]),
    ("NaN", [*COLUMNS], ["202", "a: missing in 1 of 80", "line 4", "--impute a"]),
    ("tall", [*COLUMNS], ["202", "text in 1 of 80", "'tall'", "--drop a"]),
    ("words", [*COLUMNS, "--test", "SOURCE"], ["204", "two splits", "Remove them"]),
    ("words", [*COLUMNS, "--algorithms", "fedavgg"], ["101", "'fedavgg'", "Did you mean 'fedavg'"]),
    ("words", [*COLUMNS, "--algorithms", "fedprox", "--set", "fedprox.mu=-1"], ["112", "fedprox.mu is -1", "at least 0"]),
    ("number", [*COLUMNS, "--lr", "1e30"], ["602", "Round 0", "client north", "Lower the learning rate"]),
    ("words", [*COLUMNS, "--min-examples", "60"], ["205", "north (40)", "--min-examples 40"]),
]


@pytest.mark.parametrize(("kind", "options", "told"), CASES, ids=lambda value: value[0] if isinstance(value, list) else value)
def test_is_refused_in_words(tmp_path: Path, kind: str, options: list[str], told: list[str]) -> None:
    bad = kind if kind in ("NaN", "tall") else None
    source = table(tmp_path / "my.csv", number if kind == "number" else words, bad=bad)
    out = tmp_path / "out.json"
    given = [str(source) if option == "SOURCE" else option for option in options]
    short = SHORT if "--algorithms" not in options else ("--rounds", "2", "--seeds", "2", "--jobs", "1")
    done = freehold("compare", str(source), *given, *short, "--json", str(out), "--checkpoint", str(tmp_path / "kept"))
    assert done.returncode == 2, done.stderr
    assert all(text in done.stderr for text in [*told, "hint: ", "docs/reference/errors.md"]), done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not out.exists()


def test_unknown_task_is_refused_with_the_near_miss() -> None:
    done = freehold("compare", "hart")
    assert done.returncode == 2
    assert "Did you mean 'heart'?" in done.stderr
    assert "Traceback" not in done.stderr


CONTRADICTIONS = [
    (["--address", "here:1"], "--engine ray"),
    (["--engine", "ray"], "starts none"),
    (["--engine", "loop", "--executor", "stacked"], "--executor is for the vector engine"),
    (["--processes", "2", "--device", "cuda"], "no other device"),
    (["--processes", "2", "--jobs", "2"], "not both at once"),
]


@pytest.mark.parametrize("command", [["simulate", "heart"], ["tune", "heart", "--trials", "2"]], ids=lambda c: c[0])
@pytest.mark.parametrize(("options", "told"), CONTRADICTIONS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_options_that_contradict_each_other_are_refused(command: list[str], options: list[str], told: str) -> None:
    done = freehold(*command, *options)
    assert done.returncode == 2 and told in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr
