"""A study under way, told in lines and as a table."""

from __future__ import annotations

import io

import msgspec
from rich.console import Console

from freehold.cli.live import EVERY_S, board, cycle_of, plain, progress_of, told_state, waiting
from freehold.wire.admin import RunInfo, Schedule, StudyInfo


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


def test_a_study_on_a_schedule_tells_its_cycle_and_when_the_next_begins() -> None:
    assert cycle_of(study()) == ("-", "-")
    runs = [msgspec.structs.replace(run, state="resting", round=21, cycle=1) for run in study().runs]
    rests = msgspec.structs.replace(study(), runs=runs, schedule=Schedule(every_s=60.0, times=None, cycle=1, due=0.0))
    assert told_state(rests) == "resting" and progress_of(rests) == (30, 30)
    cycle, due = cycle_of(rests)
    assert cycle == "2" and due.startswith(("1970", "1969"))
    last = msgspec.structs.replace(rests, schedule=Schedule(every_s=60.0, times=2, cycle=1, due=0.0))
    assert cycle_of(last) == ("2 of 2", "-")
    trains = [msgspec.structs.replace(run, state="training", round=14, cycle=1) for run in runs]
    assert progress_of(msgspec.structs.replace(rests, runs=trains)) == (9, 30), "of the cycle that is under way"
