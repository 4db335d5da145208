"""A study under way, told in lines and as a table."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from freehold.cli.live import EVERY_S, board, cycle_of, list_of, plain, progress_of, told_state, waiting
from freehold.cli.show import table
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


def short_of_nodes() -> StudyInfo:
    runs = [msgspec.structs.replace(run, state="waiting", round=0, asked=[], heard=[]) for run in study().runs]
    return msgspec.structs.replace(study(), runs=runs, least_nodes=4, offering=3)


def test_a_study_that_is_short_of_nodes_says_how_many_it_waits_for() -> None:
    assert told_state(short_of_nodes()) == "waiting for nodes, 3 of 4 here"
    assert told_state(msgspec.structs.replace(short_of_nodes(), offering=4)) == "running"
    assert told_state(msgspec.structs.replace(short_of_nodes(), state="stopped")) == "stopped"
    assert told_state(msgspec.structs.replace(study(), least_nodes=4, offering=3)) == "running", "a round is open"


def test_in_a_pipe_no_line_comes_twice() -> None:
    lines: list[str] = []
    now = 0.0
    follow = plain(lines.append, lambda: now)
    for step in range(5):
        now = step * EVERY_S
        follow(short_of_nodes())
    now += EVERY_S
    follow(msgspec.structs.replace(short_of_nodes(), offering=2))
    assert [line.partition(", 0 of")[0] for line in lines] == [f"mine: waiting for nodes, {here} of 4 here" for here in (3, 2)]


def test_repeats_are_counted_from_one_and_measuring_is_said() -> None:
    lines: list[str] = []
    follow = plain(lines.append, lambda: 0.0)
    follow(study())
    assert "ditto, repeat 2, waits for bob" in lines[0]
    measures = [msgspec.structs.replace(run, state="measuring") for run in study().runs]
    plain(lines.append, lambda: 0.0)(msgspec.structs.replace(study(), runs=measures))
    assert "ditto, repeat 1, measures, waits for bob" in lines[1]


def test_a_narrow_terminal_keeps_the_names_and_the_numbers() -> None:
    nodes = ["cleveland", "hungary", "switzerland", "va-long-beach"]
    runs = [msgspec.structs.replace(run, algorithm="fedavg-intercept", asked=nodes, heard=[]) for run in study().runs]
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=False).print(board(msgspec.structs.replace(study(), runs=runs)))
    row = out.getvalue().splitlines()[-1]
    assert all(part in row for part in ("fedavg-intercept", "13 of 30", "2 of 3", "cleveland", "…")) and len(row.rstrip()) <= 80


def test_the_list_of_studies_with_schedules_stays_in_eighty_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    digest = "sha256:" + "0123456789ab" * 6
    plain = msgspec.structs.replace(study("finished", round=10), name="heart-fedavg", digest=digest, started=1.7e9)
    schedule = Schedule(every_s=86400.0, times=None, cycle=0, due=1.75e9)
    daily = msgspec.structs.replace(plain, state="running", schedule=schedule)
    table(list_of([plain, daily]), empty="")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    assert lines[0].split() == ["study", "digest", "state", "rounds", "started", "cycle", "next"]
    hers = msgspec.structs.replace(daily, by="researcher/carol")
    assert [line[5] for line in list_of([plain, hers])] == ["by", "operator", "researcher/carol"]
    assert list_of([plain])[0] == ["study", "digest", "state", "rounds", "started", "by"]
    assert list_of([plain])[1][1] == "0123456789ab"
