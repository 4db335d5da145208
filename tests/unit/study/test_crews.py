"""Studies whose cells are divided among workers: the same results, checkpoints that fit, and nothing left after Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from freehold.cli.options import EngineName, ResultOptions, RunOptions
from freehold.cli.running import run
from freehold.errors import ClusterUnfit, MissingExtra, UsageError
from freehold.events import Event
from freehold.report import Comparison
from freehold.study import Interrupted, Settings
from tests.unit.study.test_compare import _StopAfter, compared
from tests.unit.study.test_runs import _Twice


def alike(a: Comparison, b: Comparison) -> bool:
    """Whether all figures of all clients are the same up to rounding."""
    pairs = [
        (x.figures[client], y.figures[client])
        for row, other in zip(a.rows, b.rows, strict=True)
        for x, y in zip(row.results, other.results, strict=True)
        for client in x.figures
    ]
    return bool(pairs) and all(x == pytest.approx(y, abs=1e-5, nan_ok=True) for x, y in pairs)


def test_a_study_over_two_processes_of_which_one_is_killed_is_interrupted_and_resumed_over_one(tmp_path: Path) -> None:
    stop, killed = _StopAfter(6), 0

    def listen(event: Event) -> None:
        nonlocal killed
        if event.name == "round.closed" and event.fields["round"] == 2 and not killed:
            killed = multiprocessing.active_children()[0].pid or 0
            os.kill(killed, signal.SIGKILL)
        stop(event)

    with pytest.raises(Interrupted):
        compared(settings=Settings(processes=2, checkpoint=tmp_path, listener=listen))
    assert killed and not multiprocessing.active_children()
    assert alike(compared(settings=Settings(checkpoint=tmp_path, resume=True)), compared())


def test_ctrl_c_twice_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        compared(settings=Settings(processes=2, checkpoint=tmp_path, listener=_Twice("round.closed")))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (RunOptions(engine=EngineName.ray), "--address HOST:6379"),
        (RunOptions(address="127.0.0.1:6379"), "--engine ray"),
        (RunOptions(processes=2, jobs=2), "--processes"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_a_remedy(options: RunOptions, hint: str) -> None:
    with pytest.raises(UsageError) as told:
        run(pytest.fail, options, ResultOptions())
    assert hint in told.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(ClusterUnfit, match="Nobody answers"):
        compared(settings=Settings(engine="ray", address="127.0.0.1:1"))


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "freehold.engines.ray", raising=False)
    with pytest.raises(MissingExtra) as told:
        compared(settings=Settings(engine="ray", address="127.0.0.1:6379"))
    assert told.value.hint == "pip install 'freehold[ray]'"
