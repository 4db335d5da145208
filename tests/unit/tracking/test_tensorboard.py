from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from freehold.errors import UsageError
from freehold.events import Event
from freehold.tracking import listener
from tests.unit.tracking.events import CELLS, accuracy, study


def curve(folder: Path, tag: str = "accuracy") -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.tensor_proto.float_val[0]) for event in read.Tensors(tag)]


def test_each_cell_has_its_folder_with_its_learning_curve(tmp_path: Path) -> None:
    with listener(f"tensorboard:{tmp_path / 'runs'}") as hear:
        for event in study():
            hear(event)
    folders = [
        tmp_path / "runs" / row / f"seed-{seed}" for row, seed in (("fedavg", 0), ("fedavg", 1), ("Ditto%3A lam %3D 0.5%2F2", 0))
    ]
    assert sorted(path.parent for path in tmp_path.rglob("events.*")) == sorted(folders)
    for folder, (row, seed) in zip(folders, CELLS, strict=True):
        assert curve(folder) == [(at, accuracy(row, seed, at)) for at in (2, 4)]


def test_what_a_study_told_before_it_broke_off_is_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), listener(f"tensorboard:{tmp_path}") as hear:
        hear(Event("round.evaluated", {"row": "fedavg", "seed": 0, "round": 1, "accuracy": 0.5}))
        raise KeyboardInterrupt
    assert curve(tmp_path / "fedavg" / "seed-0") == [(1, 0.5)]


@pytest.mark.parametrize("row", ["..", ".", "../../up", "/etc"])
def test_no_name_of_a_row_leads_out_of_the_folder(tmp_path: Path, row: str) -> None:
    with listener(f"tensorboard:{tmp_path / 'deep' / 'runs'}") as hear:
        hear(Event("round.evaluated", {"row": row, "seed": 0, "round": 1, "accuracy": 0.5}))
    (written,) = tmp_path.rglob("events.*")
    assert written.relative_to(tmp_path / "deep" / "runs").parts[1] == "seed-0"


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot write"), listener(f"tensorboard:{tmp_path / 'file' / 'runs'}"):
        raise AssertionError("entered")
