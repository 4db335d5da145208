"""A study under way, told in lines and as a table."""

from __future__ import annotations

import io

from rich.console import Console

from freehold.cli.live import EVERY_S, board, plain, progress_of, waiting
from freehold.wire.admin import RunInfo, StudyInfo


def study(state: str = "running", *, round: int = 3) -> StudyInfo:
    def run(number: int, state: str, round: int) -> RunInfo:
        return RunInfo(
            id=f"x-{number}",
            algorithm="ditto",
            repeat=number,
            state=state,
            round=round,
            rounds=10,
            asked=["alice", "bob\x1b[31m"],
            heard=["alice"],
            deadline=0.0,
        )

    runs = [run(0, "finished", 10), run(1, "training", round), run(2, "waiting", 0)]
    return StudyInfo(digest="sha256:0", name="mine", state=state, started=0.0, ended=None, reason=None, runs=runs)


def test_rounds_of_all_runs_are_counted() -> None:
    assert progress_of(study()) == (13, 30)
    assert waiting(study().runs[1]) == ["bob\x1b[31m"]


def test_lines_come_at_the_start_every_few_seconds_and_at_the_end() -> None:
    lines: list[str] = []
    now = 0.0
    follow = plain(lines.append, lambda: now)
    follow(study())
    now = EVERY_S / 2
    follow(study(round=4))
    now = EVERY_S
    follow(study(round=5))
    follow(study("finished", round=10))
    assert [line.split(", ")[1] for line in lines] == ["13 of 30 rounds", "15 of 30 rounds", "20 of 30 rounds"]
    assert all(line.isprintable() for line in lines)


def test_the_table_says_how_far_it_is_and_whom_it_waits_for() -> None:
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=False).print(board(study()))
    shown = out.getvalue()
    assert "mine: running, 13 of 30 rounds" in shown
    assert "2 of 3" in shown
    assert "bob" in shown
    assert "\x1b[31m" not in shown
