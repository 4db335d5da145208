"""A comparison from Python, on a small table: rows, figures, newcomers, privacy, plans and their contribution spec."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

import freehold
from freehold.errors import CheckpointError, Diverged, PlanError, SpecMismatch, UsageError
from freehold.events import Event
from freehold.plan import Privacy, dumps
from freehold.report import Comparison, to_json
from freehold.study import Interrupted, Settings, make_plan
from freehold.study.checkpoint import Checkpoint

ROWS = ["local", "fedavg", "ditto"]


def table(kind: str = "class") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frames = []
    for site, n in (("north", 40), ("south", 55), ("west", 31)):
        x = rng.normal(size=(n, 3))
        score = x @ [1.0, -2.0, 0.5] + (0.7 if site == "west" else 0.0)
        y = np.where(score > 0, "yes", "no") if kind == "class" else 100 + 20 * score
        frames.append(pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y, "site": site}))
    return pd.concat(frames, ignore_index=True)


def compared(kind: str = "class", seeds: int = 2, settings: Settings | None = None) -> Comparison:
    return freehold.compare(
        table(kind), client="site", target="y", algorithms=ROWS, seeds=seeds, rounds=4, lr=0.3, settings=settings or Settings()
    )


def plain(comparison: Comparison) -> list[object]:
    return [(row.name, [(r.figures, r.curve) for r in row.results]) for row in comparison.rows]


def test_a_classification_has_its_rows_its_clients_and_what_each_would_serve() -> None:
    found = to_json(compared())
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [row["name"] for row in rows] == ["local", "fedavg", "ditto", "select"]
    assert all(set(row["per_client"]) == {"north", "south", "west"} for row in rows)
    assert all(0.5 < row["mean"] <= 1 for row in rows)


def test_a_regression_is_measured_in_the_unit_of_its_target() -> None:
    comparison = compared("number")
    assert comparison.problem == "regression"
    figures = comparison.rows[0].results[0].figures["north"]
    assert set(figures) == {"r2", "rmse", "mae"}
    assert 1 < figures["rmse"] < 60  # the target's spread is about 45; standardized it would be about 1


def test_two_processes_find_the_same_as_one_to_the_bit() -> None:
    assert plain(compared(settings=Settings(jobs=2))) == plain(compared())


def test_the_engines_find_the_same() -> None:
    vector, loop = compared(), compared(settings=Settings(engine="loop"))
    for one, other in zip(vector.rows, loop.rows, strict=True):
        for a, b in zip(one.results, other.results, strict=True):
            assert a.figures["north"]["log_loss"] == pytest.approx(b.figures["north"]["log_loss"], rel=1e-4)


class _StopAfter:
    """A listener that does what Ctrl-C does, after some rounds."""

    def __init__(self, rounds: int, number: signal.Signals = signal.SIGINT) -> None:
        self.left, self.number = rounds, number

    def __call__(self, event: Event) -> None:
        if event.name == "round.closed":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("rounds", "number"), [(1, signal.SIGINT), (6, signal.SIGTERM), (14, signal.SIGINT)])
def test_an_interrupted_study_resumes_to_the_same_result(tmp_path: Path, rounds: int, number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as stopped:
        compared(settings=Settings(checkpoint=tmp_path, listener=_StopAfter(rounds, number)))
    assert stopped.value.checkpoint is not None
    assert any(Path(stopped.value.checkpoint).iterdir())
    assert plain(compared(settings=Settings(checkpoint=tmp_path, resume=True))) == plain(compared())
    assert not any(tmp_path.iterdir())  # done: nothing is left


def test_resuming_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        compared(settings=Settings(checkpoint=tmp_path, resume=True))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder=tmp_path)
    (tmp_path / "cell.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "cell.json").write_text("{")
    for load in (checkpoint.load_running, checkpoint.load_done):
        with pytest.raises(CheckpointError, match="damaged"):
            load("cell")


def test_a_checkpoint_without_what_it_should_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped:
        compared(settings=Settings(checkpoint=tmp_path, listener=_StopAfter(6)))
    done = next(Path(stopped.value.checkpoint or "").glob("*.json"))
    done.write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        compared(settings=Settings(checkpoint=tmp_path, resume=True))


def test_a_loss_that_is_no_longer_finite_stops_the_study_and_names_client_and_round() -> None:
    with pytest.raises(Diverged, match=r"Round \d+, client (north|south|west)"):
        freehold.compare(table("number"), client="site", target="y", algorithms=["fedavg"], seeds=1, rounds=4, lr=1e30)


def test_newcomers_never_train_and_are_measured() -> None:
    found = compared(settings=Settings(newcomers=1))
    assert [c.name for c in found.newcomers] == ["west"]
    assert "west" in found.rows[1].results[0].figures
    with pytest.raises(UsageError, match="nobody would train"):
        compared(settings=Settings(newcomers=3))


def test_a_plan_carries_its_contribution_spec_and_is_held_to_it(tmp_path: Path) -> None:
    plan = make_plan(table(), "ditto", client="site", target="y", rounds=2)
    assert [t.name for t in plan.contribution.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    path = tmp_path / "plan.toml"
    path.write_text(dumps(plan))
    found = freehold.simulate(path, table(), client="site", target="y")
    assert [row.name for row in found.rows] == ["local", "fedavg", "ditto", "select"]
    short = msgspec.structs.replace(plan.contribution, tensors=plan.contribution.tensors[1:])
    with pytest.raises(SpecMismatch, match=r"0\.weight"):
        freehold.simulate(msgspec.structs.replace(plan, contribution=short), table(), client="site", target="y")


def test_record_level_privacy_runs_and_costs_accuracy_and_client_level_is_refused() -> None:
    plan = make_plan(table(), "fedavg", client="site", target="y", rounds=8, lr=0.3)
    clear = freehold.simulate(plan, table(), client="site", target="y").rows[-1].results[0].figures
    noisy_plan = msgspec.structs.replace(
        plan, privacy=Privacy(unit="record", max_norm=1.0, noise_multiplier=50.0, expected_batch=16.0)
    )
    noisy = freehold.simulate(noisy_plan, table(), client="site", target="y").rows[-1].results[0].figures
    assert sum(f["log_loss"] for f in noisy.values()) > sum(f["log_loss"] for f in clear.values())
    with pytest.raises(PlanError, match="guard"):
        freehold.simulate(
            msgspec.structs.replace(plan, privacy=Privacy(unit="client", max_norm=1.0, noise_multiplier=1.0)),
            table(), client="site", target="y",
        )  # fmt: skip


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        compared(settings=Settings(checkpoint=occupied))


def test_a_polars_frame_is_read_like_a_pandas_one() -> None:
    frame = pl.DataFrame({name: column.to_numpy() for name, column in table().items()})
    found = freehold.compare(frame, client="site", target="y", algorithms=ROWS, seeds=2, rounds=4, lr=0.3)
    assert plain(found) == plain(compared())


def test_a_keyword_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(UsageError, match="target has no meaning"):
        freehold.compare("heart", target="num", seeds=1)
