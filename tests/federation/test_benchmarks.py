"""The benchmarks themselves, at sizes that say nothing: that they run, and that their figures are of what they claim."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from benchmarks import connections
from benchmarks.table import tables


@pytest.mark.slow  # ten seconds or more where others work too
def test_connected_nodes_are_woken_and_all_answer_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    found = connections.measure(20, awake=10, rounds=2, bulk=10, settle_s=0.1)
    assert found["connections_broken"] == 0
    assert found["round"]["answered_at_the_end"] == found["bulk"]["answered_at_the_end"] == 20  # type: ignore[index]
    assert "20" in tables("connections", {"points": [found]})
    connections.plot([found], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_too_few_files_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(SystemExit, match="10512 open files are needed and the system allows 64"):
        connections.allow_files(10_512)
