"""What goes where: results, plans and messages, also where nothing can be written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.runs import COLUMNS, PROGRAM, environment, freehold, table, words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table: two sites, one of a single class, and one that is too small."""
    folder = tmp_path_factory.mktemp("streams")
    with table(folder / "my.csv", words).open("a", encoding="utf-8") as file:
        file.writelines(f"sick,{row / 40},{row % 7},0,ill\n" for row in range(40))
        file.write("tiny,0.1,0.2,0,ill\n")
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    """A study whose report goes to standard output, and whose plan goes to a file."""
    return freehold(
        "simulate", str(place / "my.csv"), *COLUMNS, "--drop", "junk", "--algorithm", "fedavg", "--rounds", "2", "--seeds", "1",
        "--devices", "--min-examples", "20", "--jobs", "1", "--json", "-", "--write-plan", str(place / "plan.toml"),
    )  # fmt: skip


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    for row in report["rows"]:
        row.pop("seconds")  # of the clock, not of the result
    found: list[dict[str, Any]] = report["rows"]
    return found


def test_a_report_on_standard_output_is_json_and_nothing_else(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stderr
    assert {row["name"] for row in json.loads(first.stdout)["rows"]} == {"local", "fedavg"}


def test_a_client_of_one_class_and_the_number_of_skipped_devices_are_told(first: subprocess.CompletedProcess[str]) -> None:
    warnings = " ".join(json.loads(first.stdout)["warnings"])
    assert "sick: all 40 examples are 'ill'" in warnings
    assert "1 client" in warnings and "skipped" in warnings


def test_a_written_plan_runs_to_the_same_result_in_a_file_of_the_longest_name(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    long = place / ("n" * 250 + ".json")
    data = ("--data", str(place / "my.csv"), *COLUMNS, "--drop", "junk")
    again = freehold("simulate", str(place / "plan.toml"), *data, "--jobs", "1", "--json", str(long))
    assert again.returncode == 0, again.stderr
    assert rows(json.loads(long.read_text(encoding="utf-8"))) == rows(json.loads(first.stdout))
    assert not list(place.glob(".freehold*"))


def test_a_key_that_nobody_reads_is_refused(place: Path, first: subprocess.CompletedProcess[str]) -> None:
    text = (place / "plan.toml").read_text(encoding="utf-8")
    (place / "odd.toml").write_text(text.replace("batch_size", "batchsize"), encoding="utf-8")
    done = freehold("simulate", str(place / "odd.toml"), "--data", str(place / "my.csv"), *COLUMNS)
    assert done.returncode == 2
    assert "error 111" in done.stderr and "training.batchsize" in done.stderr and "'batch_size'" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compare", "heart", "--json", "/nowhere/out.json"], "no folder /nowhere"),
        (["compare", "heart", "--json", "/"], "is a folder"),
        (["compare", "heart", "--json", "a" * 5000], "File name too long"),
        (["compare", "heart", "--report", "/tmp/" + "b" * 300 + ".html"], "File name too long"),
        (["compare", "c" * 5000 + ".csv", "--target", "y"], "no file or folder"),
        (["compare", "/dev/stdin", "--client-column", "site", "--target", "y"], "pipe or a device"),
        (["compare", "SOURCE", "--drop", "a\nb", "--client-column", "site", "--target", "y"], "no list of names"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_or_written_is_refused_before_the_work(place: Path, arguments: list[str], told: str) -> None:
    given = [str(place / "my.csv") if argument == "SOURCE" else argument for argument in arguments]
    done = subprocess.run(
        [*PROGRAM, *given], input="site,y\n", capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr) < 1000 and not done.stdout


@pytest.mark.parametrize(
    ("shell", "code", "told"),
    [
        ('"$@" >/dev/full', 2, "standard output could not be written: No space left"),
        ('"$@" >&-', 2, "standard output is closed"),
        ('{ "$@"; echo $? >&3; } 3>&2 | true', 0, ""),
    ],
    ids=["full", "closed", "broken pipe"],
)
def test_an_output_that_takes_nothing_ends_the_program_without_a_traceback(shell: str, code: int, told: str) -> None:
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *PROGRAM, "algorithms"], capture_output=True, text=True, env=environment(), timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if told:
        assert done.stderr.count("\n") == 1 and told in done.stderr
    else:
        assert done.stderr.strip() in ("1", "141"), done.stderr  # its exit code, and no word


def raising(error: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The program, in which a command raises what a command may meet anywhere."""
    text = f"""
import errno, os, sys
from freehold.cli import program
def failing(**_):
    print("said")
    raise {error}
program.app = failing
program.main()
"""
    return subprocess.run(
        [PROGRAM[0], *flags, "-c", text], capture_output=True, text=True, env=environment(), timeout=60, check=False
    )


@pytest.mark.parametrize("error", ["OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "BrokenPipeError(errno.EPIPE, 'x')"])
@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["", "unbuffered"])
def test_what_fails_elsewhere_is_not_laid_on_standard_output(error: str, flags: list[str]) -> None:
    done = raising(error, *flags)
    assert done.returncode == 1 and "standard output" not in done.stderr
    assert error.partition("(")[0] in done.stderr.splitlines()[-1]
    assert done.stdout == "said\n"


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["", "unbuffered"])
def test_a_full_output_is_told_whether_buffered_or_not(flags: list[str]) -> None:
    line = ["bash", "-c", '"$@" >/dev/full', "bash", PROGRAM[0], *flags, *PROGRAM[1:], "algorithms"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 2 and done.stderr == "error: standard output could not be written: No space left on device.\n"
