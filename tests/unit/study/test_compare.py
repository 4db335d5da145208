"""A comparison from Python, on a small table: rows, figures, newcomers, privacy, plans and their contribution spec."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

import freehold
from freehold.errors import CheckpointError, Diverged, SpecMismatch, UsageError
from freehold.events import Event
from freehold.plan import dumps
from freehold.report import Comparison, to_json
from freehold.study import Interrupted, Settings, make_plan
from freehold.study.checkpoint import Checkpoint
from freehold.study.said import MOST, beside_published
from freehold.study.watch import watch

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


def test_a_rounded_row_stands_beside_the_other_with_its_cost() -> None:
    algorithms = ["fedavg+bfloat16", "fedavg", "scaffold", "scaffold+bfloat16"]
    found = freehold.compare(table(), client="site", target="y", algorithms=algorithms, seeds=2, rounds=4, lr=0.3)
    rows = {row.name: row for row in found.rows}
    assert [row.name for row in found.rows][:3] == ["local", "fedavg+bfloat16", "fedavg"]
    assert rows["fedavg+bfloat16"].title == "FedAvg, bfloat16"
    assert rows["fedavg+bfloat16"].hyperparameters == rows["fedavg"].hyperparameters == {"lr": 0.3}
    assert 2 * rows["fedavg+bfloat16"].sent_bytes == rows["fedavg"].sent_bytes
    assert 4 * rows["scaffold+bfloat16"].sent_bytes == 3 * rows["scaffold"].sent_bytes, "control variates are not rounded"
    losses = [[r.figures["north"]["log_loss"] for r in rows[name].results] for name in ("fedavg", "fedavg+bfloat16")]
    assert losses[0] != losses[1]
    assert np.allclose(losses[0], losses[1], atol=0.01)
    told = [note for note in found.notes if "of the bytes" in note]
    assert len(told) == 2
    assert told[0].startswith("FedAvg, bfloat16 against FedAvg: 50 % of the bytes; mean accuracy ")
    assert "SCAFFOLD, bfloat16 against SCAFFOLD: 75 % of the bytes" in told[1]
    assert "log-loss" in told[0] and "by seed" in told[0]


def test_a_plan_that_rounds_is_simulated_as_it_says() -> None:
    plan = make_plan(table(), "ditto+bfloat16", client="site", target="y", rounds=2)
    assert plan.contribution.dtype == "bfloat16"
    assert {tensor.dtype for tensor in plan.contribution.tensors} == {"bfloat16"}
    assert [companion.name for companion in plan.companions] == ["local", "fedavg"]
    found = freehold.simulate(plan, table(), client="site", target="y", seeds=1)
    beside = freehold.compare(
        table(), client="site", target="y", algorithms=["ditto+bfloat16", "fedavg+bfloat16"], seeds=1, rounds=2
    )
    assert plain(found)[:3] == [(name.removesuffix("+bfloat16"), results) for name, results in plain(beside)[:3]]  # type: ignore[misc]
    assert "Contributions were rounded to bfloat16, as the plan says." in found.notes


def test_a_plan_that_lists_another_dtype_than_travels_is_refused() -> None:
    plan = make_plan(table(), "fedavg", client="site", target="y", rounds=2)
    wrong = msgspec.structs.replace(plan, contribution=msgspec.structs.replace(plan.contribution, dtype="bfloat16"))
    with pytest.raises(SpecMismatch, match="bfloat16"):
        freehold.simulate(wrong, table(), client="site", target="y", seeds=1)


@pytest.mark.parametrize("name", ["fedavg+float16", "fedavg+", "fedavg+bfloat16+bfloat16", "fedavg+int8"])
def test_contributions_are_not_sent_as_anything(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be sent as"):
        freehold.compare(table(), client="site", target="y", algorithms=[name], seeds=1, rounds=1)


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


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        compared(settings=Settings(checkpoint=occupied))


def test_a_polars_frame_is_read_like_a_pandas_one() -> None:
    frame = pl.DataFrame({name: column.to_numpy() for name, column in table().items()})
    found = freehold.compare(frame, client="site", target="y", algorithms=ROWS, seeds=2, rounds=4, lr=0.3)
    assert plain(found) == plain(compared())


def test_one_algorithm_may_be_named_by_itself_and_training_alone_is_always_there() -> None:
    found = freehold.compare(table(), client="site", target="y", algorithms="fedavg", seeds=1, rounds=1)
    assert [row.name for row in found.rows] == ["local", "fedavg"]
    assert "1 seed," in repr(found)


def test_an_unknown_keyword_is_refused_with_the_near_miss() -> None:
    with pytest.raises(UsageError, match=r"compare has no argument 'algorithm'.*'algorithms'"):
        freehold.compare(table(), client="site", target="y", algorithm="fedavg")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="make_plan has no argument 'sites'"):
        make_plan(table(), "ditto", sites="site")  # type: ignore[call-arg]


def test_a_report_from_python_names_the_call_and_has_a_title() -> None:
    found = freehold.compare(table(), client="site", target="y", algorithms="fedavg", seeds=1, rounds=1)
    assert found.command == "freehold.compare(frame, client='site', target='y', algorithms='fedavg', seeds=1, rounds=1)"
    assert found.title == "y by site"


def test_a_comparison_saves_itself(tmp_path: Path) -> None:
    found = compared()
    found.save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found.to_json()
    found.save(tmp_path / "out.html")
    assert "</html>" in (tmp_path / "out.html").read_text(encoding="utf-8")
    for wrong in ("out.txt", "nowhere/out.json"):
        with pytest.raises(UsageError):
            found.save(tmp_path / wrong)


def test_a_plan_is_run_with_as_many_seeds_as_it_says_and_the_report_is_about_its_algorithm() -> None:
    plan = make_plan(table(), "fedavg", client="site", target="y", rounds=1, seed=7, repeats=3)
    found = freehold.simulate(plan, table(), client="site", target="y")
    assert found.seeds == (7, 8, 9)
    assert found.asked == "fedavg"
    assert found.command == "freehold.simulate(plan, frame, client='site', target='y')"
    assert freehold.simulate(plan, table(), client="site", target="y", seeds=2).seeds == (7, 8)
    with pytest.raises(UsageError, match="no data of its own") as caught:
        freehold.simulate(plan)
    assert "--data" in caught.value.hint


def test_what_a_check_finds_stands_in_the_report_the_worst_first() -> None:
    frame = table()
    frame.loc[frame["site"] == "north", "a"] = 0.0
    frame["a"] += 50.0 * (frame["a"] != 0)
    found = freehold.compare(frame, client="site", target="y", algorithms="fedavg", seeds=1, rounds=1)
    assert found.warnings[0] == "north: a = 0 in 40 of 40 rows: missing, coded 0?"


def test_many_oddities_are_cut_and_counted() -> None:
    frame = table()
    for name in "defghij":
        frame[name] = np.where(frame["site"] == "north", 0.0, 50 + np.arange(len(frame)) * 0.37)
    found = freehold.compare(frame, client="site", target="y", algorithms="fedavg", seeds=1, rounds=1)
    assert len([text for text in found.warnings if "coded 0?" in text]) == MOST
    assert "1 more finding of this kind: see freehold data check." in found.warnings


def test_what_each_would_serve_says_among_what_it_chooses_and_why_some_stay() -> None:
    found = compared()
    assert dict(found.rows[-1].hyperparameters) == {"local": "local", "shared": "fedavg", "personal": "ditto"}
    note = next(note for note in found.notes if note.startswith("What each would serve"))
    assert "Alone, FedAvg or Ditto" in note
    assert ("With fewer than 5 validation examples Alone stays always: west." in note) == (found.clients[2].validation < 5)


def test_a_client_with_too_few_validation_examples_is_named_as_staying_alone() -> None:
    frame = table()
    small = frame[frame["site"] == "west"].head(20)
    frame = pd.concat([frame[frame["site"] != "west"], small])
    found = freehold.compare(frame, client="site", target="y", algorithms=ROWS, seeds=1, rounds=1)
    assert found.clients[-1].validation < 5
    assert any("Alone stays always: west." in note for note in found.notes)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_on_a_terminal_and_nothing_elsewhere() -> None:
    shown, silent_one = _Terminal(), io.StringIO()
    for stream in (shown, silent_one):
        listener = watch(stream)
        listener(Event("study.planned", {"cells": 2}))
        listener(Event("cell.closed", {"done": 1, "cells": 2, "row": "local", "seed": 0}))
    assert shown.getvalue().endswith("training: 1 of 2")
    assert silent_one.getvalue() == ""


def test_the_distance_to_a_published_table_is_said_in_words() -> None:
    local, fedavg, *_ = compared().rows
    mean = 0.5
    rows = (
        dataclasses.replace(local, published=mean),
        dataclasses.replace(fedavg, published=mean, published_std=1e-6),
    )
    text = beside_published(dataclasses.replace(compared(), rows=rows))
    assert "Farther from the published mean" in text and "FedAvg (" in text
    assert "Alone has none" in text
    near = dataclasses.replace(fedavg, published=mean, published_std=1.0)
    assert beside_published(dataclasses.replace(compared(), rows=(local, near))).startswith("All 1 rows")


def test_a_keyword_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(UsageError, match="target has no meaning"):
        freehold.compare("heart", target="num", seeds=1)
