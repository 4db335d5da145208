"""An interrupted run leaves a checkpoint, and goes on to the bit-equal result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.cli.runs import COLUMNS, PROGRAM, SHORT, environment, freehold, table, words


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    source, kept = table(tmp_path / "my.csv", words), tmp_path / "kept"
    base = ["compare", str(source), *COLUMNS, "--seeds", "2", "--rounds", "150", "--algorithms", "local,fedavg", "--jobs", "1"]
    stopped = [*base, "--checkpoint", str(kept), "--json", str(tmp_path / "resumed.json")]
    with subprocess.Popen(
        [*PROGRAM, *stopped], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    ) as run:
        assert run.stderr is not None
        assert "training" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        told = run.stderr.read()
    assert run.returncode == 130, told
    assert "Go on with" in told
    assert not (tmp_path / "resumed.json").exists()
    assert freehold(*stopped, "--resume", "--jobs", "2").returncode == 0
    assert freehold(*base, "--json", str(tmp_path / "whole.json")).returncode == 0
    resumed, whole = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("resumed.json", "whole.json"))
    for row in (*resumed["rows"], *whole["rows"]):
        row.pop("seconds")  # of the clock, not of the result
    assert resumed["rows"] == whole["rows"]


def importing(parent: int) -> bool:
    """Whether a child of the process has begun to load what it needs, and with it Python's own answer to Ctrl-C."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split():
        try:
            if "numpy" in Path(f"/proc/{child}/maps").read_text(encoding="utf-8"):
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_of_a_terminal_while_workers_start_ends_all_at_once_without_a_traceback(tmp_path: Path, times: int) -> None:
    source, kept = table(tmp_path / "my.csv", words), tmp_path / "kept"
    arguments = ["compare", str(source), *COLUMNS, "--seeds", "2", "--rounds", "3000", "--algorithms", "local,fedavg"]
    with subprocess.Popen(
        [*PROGRAM, *arguments, "--jobs", "2", "--checkpoint", str(kept)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(), start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stderr is not None
        assert "training" in run.stderr.readline()
        deadline = time.monotonic() + 60
        while not importing(run.pid):
            assert time.monotonic() < deadline, "no worker was started"
        for _ in range(times):
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: every process of the group hears it
        told = run.stderr.read()  # ends when the last process of the group has closed it
    assert run.returncode == 130, told
    assert "Traceback" not in told and "error" not in told
    assert "nothing was written" in told
    assert not kept.exists()


def test_models_are_written_once_and_not_into_what_is_there(tmp_path: Path) -> None:
    source, models = table(tmp_path / "my.csv", words), tmp_path / "deep" / "models"
    base = ["compare", str(source), *COLUMNS, *SHORT, "--models", str(models), "--checkpoint", str(tmp_path / "kept")]
    assert freehold(*base).returncode == 0
    found = sorted(str(path.relative_to(models)) for path in models.rglob("*.safetensors"))
    assert found == [f"{row}/seed-{s}/{c}.safetensors" for row in ("fedavg", "local") for s in (0, 1) for c in ("north", "south")]
    again = freehold(*base)
    assert again.returncode == 2 and "is not empty" in again.stderr
    wrong = freehold(*base[:-4], "--models", str(source))
    assert wrong.returncode == 2 and "cannot be written" in wrong.stderr


def test_models_of_what_had_finished_without_them_are_asked_for(tmp_path: Path) -> None:
    source = table(tmp_path / "my.csv", words)
    base = ["compare", str(source), *COLUMNS, "--seeds", "1", "--rounds", "2", "--algorithms", "local,fedavg", "--jobs", "1"]
    base += ["--checkpoint", str(tmp_path / "kept")]
    failpoints = {"FREEHOLD_FAILPOINTS": "study.done.named=kill@1"}
    killed = subprocess.run([*PROGRAM, *base], env=environment() | failpoints, capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    refused = freehold(*base, "--resume", "--models", str(tmp_path / "models"))
    assert refused.returncode == 2 and "had finished before" in refused.stderr, refused.stderr
    assert freehold(*base, "--resume").returncode == 0
