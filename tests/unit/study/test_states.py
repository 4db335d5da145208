"""Where personal states lie changes no result: not over interruptions, and not over a kill; and models come out whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from freehold.engines import Arena, PersonalStore
from freehold.errors import ArenaError, CheckpointError, UsageError
from freehold.study import cell as cells
from freehold.study import states
from freehold.study.cell import CellResult, Interrupted
from freehold.study.models import file_name
from tests.unit.study.killed import CLIENTS, ROUNDS, data, ran

POINTS = [
    "study.running.named",
    *(f"study.done.{step}" for step in ("writing", "written", "named")),
    "study.models.named",
]
CELL = "row-0-seed-0"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All states are too large for memory."""
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", -1)


def figures(found: CellResult) -> object:
    return msgspec.to_builtins(msgspec.structs.replace(found, seconds=0.0, execution={}))


@pytest.fixture(scope="module")
def in_memory() -> Callable[[str], object]:
    found: dict[str, object] = {}

    def of(algorithm: str) -> object:
        if algorithm not in found:
            found[algorithm] = figures(ran(None, algorithm=algorithm))
        return found[algorithm]

    return of


@pytest.fixture(scope="module")
def dying() -> Iterator[Callable[..., int]]:
    """Lets a process run a cell; how it ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.study.killed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:

        def run(folder: Path, failpoints: str, in_memory: int) -> int:
            assert program.stdin is not None and program.stdout is not None
            told = {"folder": str(folder), "failpoints": failpoints, "in_memory": in_memory}
            program.stdin.write(json.dumps(told) + "\n")
            program.stdin.flush()
            return int(program.stdout.readline())

        yield run
        program.stdin.close()  # type: ignore[union-attr]


def stopped(folder: Path, algorithm: str = "ditto", after: int = 4) -> None:
    with pytest.raises(Interrupted):
        ran(folder, algorithm=algorithm, stop_after=after)


@pytest.mark.parametrize("algorithm", ["ditto", "scaffold", "fedavg"])
@pytest.mark.usefixtures("small")
def test_a_cell_with_an_arena_gives_the_same_to_the_bit_interrupted_or_not(
    tmp_path: Path, in_memory: Callable[[str], object], algorithm: str
) -> None:
    assert figures(ran(None, algorithm=algorithm)) == in_memory(algorithm)
    stopped(tmp_path, algorithm)
    assert (tmp_path / "kept" / f"{CELL}.arena" / "arena.json").is_file()
    assert figures(ran(tmp_path, algorithm=algorithm, resume=True)) == in_memory(algorithm)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"{CELL}.json"]


def test_states_that_a_checkpoint_has_whole_go_on_in_an_arena(
    tmp_path: Path, in_memory: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path)
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", -1)
    with pytest.raises(Interrupted):
        ran(tmp_path, resume=True, stop_after=6)
    monkeypatch.undo()  # what lies in an arena stays there
    assert figures(ran(tmp_path, resume=True)) == in_memory("ditto")


@pytest.mark.parametrize("in_memory_bytes", [-1, 1 << 20])
@pytest.mark.parametrize(
    ("point", "at"),
    [("study.running.named", 3), *((point, 1) for point in POINTS[1:]), ("study.arena.staging", 11), ("study.arena.sealed", 4)],
)
def test_a_kill_at_any_step_is_made_good_by_resume(
    tmp_path: Path, dying: Callable[..., int], in_memory: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch, point: str, at: int, in_memory_bytes: int,
) -> None:  # fmt: skip
    ended = dying(tmp_path, f"{point}=kill@{at}", in_memory_bytes)
    assert ended == (0 if "arena" in point and in_memory_bytes > 0 else -signal.SIGKILL)
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", in_memory_bytes)
    assert figures(ran(tmp_path, resume=True)) == in_memory("ditto")
    assert len(list((tmp_path / "models").rglob("*.safetensors"))) == CLIENTS


@pytest.mark.usefixtures("small")
def test_a_damaged_arena_or_checkpoint_of_one_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    place = tmp_path / "kept" / f"{CELL}.arena"
    shutil.copytree(place, tmp_path / "whole")
    with (place / "states").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ArenaError, match="damaged"):
        ran(tmp_path, resume=True)
    shutil.rmtree(place)
    with pytest.raises(ArenaError, match="not all there"):
        ran(tmp_path, resume=True)
    shutil.copytree(tmp_path / "whole", place)
    path = tmp_path / "kept" / f"{CELL}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"generation", b"g").replace(b'\\"arena\\": [', b'\\"arena\\": 7, \\"x\\": ['))
    assert path.read_bytes() != content
    with pytest.raises(CheckpointError):
        ran(tmp_path, resume=True)


def test_what_is_small_stays_in_memory_and_only_who_can_be_asked_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from freehold.algorithms import build_algorithm
    from freehold.study import plan_for
    from freehold.tasks import build_task, task_definition

    definition = task_definition("tabular")
    plan = plan_for(definition, "ditto")
    algorithm = build_algorithm(build_task(definition, data(), plan, 0), plan.algorithm)
    clients = [str(i) for i in range(100)]
    one = states.state_bytes(algorithm.enroll(algorithm.init()))
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 10 * one)
    for asked, kind in ((10, PersonalStore), (11, Arena)):
        with states.personal_states(algorithm, clients, asked=asked, folder=tmp_path / "a", found={}, sealed=None) as found:
            assert type(found) is kind


def test_each_clients_own_model_is_written_under_the_names_of_the_module(tmp_path: Path) -> None:
    ran(tmp_path)
    place = tmp_path / "models" / "ditto" / "seed-0"
    assert sorted(p.name for p in place.iterdir()) == [f"c {i}%2F.safetensors" for i in range(CLIENTS)]
    with safe_open(place / "c 3%2F.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about == {"client": "c 3/", "algorithm": "ditto", "task": "tabular", "seed": "0", "rounds": str(ROUNDS)}
    first, other = (load_file(place / f"c {i}%2F.safetensors") for i in (1, 2))
    assert first.keys() == other.keys() and any(not torch.equal(first[k], other[k]) for k in first)


NAMES = ["", ".", "..", "...", "../x", ".hidden", " ", "a/b", "a\\0b", "é" * 100, "x" * 300, "%2F", "~", "a" * 200]


@pytest.mark.parametrize("text", NAMES)
def test_file_names_are_safe_and_differ(text: str, tmp_path: Path) -> None:
    name = file_name(text)
    assert "/" not in name and "\\0" not in name and not name.startswith(".") and 0 < len(name.encode()) <= 200
    assert name not in {file_name(other) for other in (f"{text}x", f"%{text}", f"{text}/", text.replace("/", "%2F") + "!")}
    (tmp_path / f"{name}.safetensors").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.safetensors"]


def test_a_full_disk_is_an_error_and_no_half_of_the_models_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "place_of", lambda *told: Path("/proc/models/x"))
    with pytest.raises(UsageError, match="could not be written"):
        ran(tmp_path)
    assert not (tmp_path / "kept" / f"{CELL}.json").exists(), "a cell is done once its models are there"
