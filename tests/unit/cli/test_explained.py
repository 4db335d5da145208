"""`--explain` on the terminal: rows that were computed alike share their lines, and a measurement says what it is for."""

from __future__ import annotations

import pytest

from freehold import study
from freehold.cli.explained import explained


def test_rows_that_were_computed_alike_share_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    settings = study.Settings(explain=True)
    found = study.compare("heart", algorithms=["fedavg", "ditto"], rounds=2, seeds=1, settings=settings)
    explained(found)
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("useful steps") == 1 and "Alone, FedAvg, Ditto" in told
    assert "the cost model gives it" in told and "which don't decide in a run so short" in told and "e+0" not in told
