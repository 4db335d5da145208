"""How cells are run, and what is left of a run that did not go well: rows that diverge, Ctrl-C, checkpoints."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import freehold
from freehold.errors import CheckpointError, Diverged
from freehold.events import Event
from freehold.study import Interrupted, Settings, make_plan
from freehold.study.checkpoint import Checkpoint, Running, _digest
from tests.unit.study.test_compare import _StopAfter, compared, plain, table

WILD = {"pfedme": {"inner_lr": 1e30}}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_row_that_diverges_is_told_and_the_others_keep_their_results(jobs: int) -> None:
    found = freehold.compare(
        table(), client="site", target="y", algorithms=["local", "pfedme", "fedavg"], hyperparameters=WILD, seeds=2, rounds=2,
        settings=Settings(jobs=jobs),
    )  # fmt: skip
    without = freehold.compare(table(), client="site", target="y", algorithms=["local", "fedavg"], seeds=2, rounds=2)
    assert plain(found) == plain(without)
    told = found.warnings[0]
    assert "pfedme" in told and "seed 0" in told and "Round 0, client south" in told


def test_the_algorithm_that_is_simulated_ends_the_study_where_it_diverges() -> None:
    plan = make_plan(table(), "pfedme", client="site", target="y", rounds=2, hyperparameters=WILD)
    with pytest.raises(Diverged, match="client south"):
        freehold.simulate(plan, table(), client="site", target="y")


def test_a_comparison_whose_baseline_diverges_ends_with_the_error() -> None:
    with pytest.raises(Diverged):
        freehold.compare(
            table("number"), client="site", target="y", algorithms=["local", "fedavg"], seeds=1, rounds=4,
            hyperparameters={"local": {"lr": 1e30}},
        )  # fmt: skip


class _Twice:
    """A listener that does what an impatient user does: Ctrl-C, and again."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, event: Event) -> None:
        if event.name == self.name:
            self.name = ""
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("jobs", "at"), [(1, "round.closed"), (2, "cell.closed")])
def test_a_second_interrupt_ends_the_study_at_once_and_leaves_no_process(tmp_path: Path, jobs: int, at: str) -> None:
    with pytest.raises(Interrupted) as stopped:
        freehold.compare(
            table(), client="site", target="y", algorithms=["local", "fedavg"], seeds=2, rounds=2 if jobs == 2 else 2000,
            settings=Settings(jobs=jobs, checkpoint=tmp_path, listener=_Twice(at)),
        )  # fmt: skip
    assert not multiprocessing.active_children()
    assert (stopped.value.checkpoint is not None) == any(tmp_path.iterdir())


def test_workers_never_see_a_ctrl_c_and_the_parent_does() -> None:
    blocked: list[bool] = []

    def listen(event: Event) -> None:
        if event.name == "cell.closed":
            for child in multiprocessing.active_children():
                status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
                mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
                blocked.append(bool(mask >> (signal.SIGINT - 1) & 1))

    compared(settings=Settings(jobs=2, listener=listen))
    assert blocked and all(blocked)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def interrupted(folder: Path, rounds: int = 6) -> Path:
    with pytest.raises(Interrupted) as stopped:
        compared(settings=Settings(checkpoint=folder, listener=_StopAfter(rounds)))
    return Path(stopped.value.checkpoint or "")


def test_a_run_that_starts_anew_sets_the_interrupted_one_aside_and_says_so(tmp_path: Path) -> None:
    first = interrupted(tmp_path)
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if event.name == "study.planned":
            raise RuntimeError("the machine goes down")

    with pytest.raises(RuntimeError):
        compared(settings=Settings(checkpoint=tmp_path, listener=listen))
    (told,) = [event for event in heard if event.name == "checkpoint.set_aside"]
    assert {path.name: path.read_bytes() for path in Path(str(told.fields["folder"])).iterdir()} == kept
    assert plain(compared(settings=Settings(checkpoint=tmp_path, resume=True))) == plain(compared())
    assert not any(tmp_path.iterdir())


def test_of_several_interrupted_runs_the_one_that_got_furthest_goes_on(tmp_path: Path) -> None:
    far, near = interrupted(tmp_path, 14), interrupted(tmp_path, 1)
    assert far == near
    done = len(list((tmp_path / f"{far.name}-aside.1").glob("*.json")))
    planned: list[Event] = []
    compared(settings=Settings(checkpoint=tmp_path, resume=True, listener=planned.append))
    assert planned[0].fields["done"] == done > 0
    assert not any(tmp_path.iterdir())


def resumed_from(folder: Path) -> None:
    compared(settings=Settings(checkpoint=folder, resume=True))


@pytest.mark.parametrize("kind", ["*.json", "*.safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, kind: str) -> None:
    path = next(interrupted(tmp_path).glob(kind))
    content = bytearray(path.read_bytes())
    at = content.index(b"accuracy") + 12 if kind == "*.json" else len(content) - 3
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        resumed_from(tmp_path)


def _rounds(about: dict[str, Any]) -> None:
    about["rounds_done"] = 4


def _no_mean(about: dict[str, Any]) -> None:
    for point in about["history"]["points"]:
        del point["mean"]


def _no_metric(about: dict[str, Any]) -> None:
    for point in about["history"]["points"]:
        point["test"]["north"] = {}


def _other_client(about: dict[str, Any]) -> None:
    about["clients"] = ["nobody" for _ in about["clients"]]


@pytest.mark.parametrize("change", [_rounds, _no_mean, _no_metric, _other_client])
def test_a_state_that_this_run_cannot_have_left_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = next(interrupted(tmp_path, 10).glob("*.safetensors"))
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about["history"]["points"] and about["clients"]
    change(about)
    said = json.dumps(about)
    save_file(tensors, path, metadata={"about": said, "digest": _digest(said, tensors)})
    with pytest.raises(CheckpointError, match="damaged"):
        resumed_from(tmp_path)


def test_a_state_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    state = {
        "a/b": torch.arange(3.0),
        "n": torch.tensor(2),
        "flag": torch.tensor([True, False]),
        "half": torch.ones(2).bfloat16(),
    }
    running = Running(rounds_done=1, server=state, personal={"x": state}, history={"points": [], "sent_bytes": 3, "choice": None})
    checkpoint = Checkpoint(folder=tmp_path / "kept")
    checkpoint.save_running("cell", running)
    found = checkpoint.load_running("cell")
    assert found is not None and found.history == running.history
    for name, tensor in state.items():
        assert torch.equal(found.server[name], tensor) and torch.equal(found.personal["x"][name], tensor)
