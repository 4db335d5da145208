"""A study under way, on the terminal: a table that stays up to date, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from freehold.cli.console import errors, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from freehold.wire.admin import Results, RunInfo, StudyInfo

EVERY_S = 5.0  # between two plain lines
BAR = 24  # columns, at most

Extra = Callable[[], "RenderableType | None"]
"""What stands below the table; None for nothing."""


@contextmanager
def following(extra: Extra = lambda: None, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[StudyInfo], None]]:
    """A function that is told of a study as often as one likes, and shows it."""
    console = errors()
    if not console.is_terminal:
        yield plain(console.print, clock)
        return
    from rich.console import Group
    from rich.live import Live

    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def follow(info: StudyInfo) -> None:
            below = extra()
            live.update(board(info) if below is None else Group(board(info), "", below))

        yield follow


def plain(write: Callable[[str], None], clock: Callable[[], float]) -> Callable[[StudyInfo], None]:
    """A follower that writes a line at the start, at the end, and every few seconds if there is something new."""
    last, begun, said = -EVERY_S, clock(), ""

    def follow(info: StudyInfo) -> None:
        nonlocal last, said
        over, now = info.state != "running", clock() - begun
        if over or now - last >= EVERY_S:
            last = now
            done, whole = progress_of(info)
            now_on = next((_now_on(run) for run in info.runs if run.state in ("training", "measuring")), "")
            line = f"{info.name}: {told_state(info)}, {done} of {whole} rounds{visible(now_on)}"
            if line != said:
                write(line)
            said = line

    return follow


def _now_on(run: RunInfo) -> str:
    """What a run does, and whom it waits for; its repeats are counted from 1, for people."""
    does = ", measures" if run.state == "measuring" else ""
    return f", {run.algorithm}, repeat {run.repeat + 1}{does}, waits for {', '.join(waiting(run)) or 'nobody'}"


def board(info: StudyInfo) -> RenderableType:
    """A line for each algorithm: how far its repeats are, and whom the open one waits for."""
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, whole = progress_of(info)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title=f"{visible(info.name)}: {told_state(info)}, {done} of {whole} rounds",
        title_justify="left",
        title_style="bold",
    )
    for header in ("algorithm", "", "rounds", "repeat", "waits for"):
        table.add_column(header, no_wrap=header not in ("", "waits for"), max_width=None if header else BAR)
    for algorithm in dict.fromkeys(run.algorithm for run in info.runs):
        runs = [run for run in info.runs if run.algorithm == algorithm]
        open_run = next((run for run in runs if run.state in ("training", "measuring")), None)
        count = sum(_closed(run) for run in runs)
        total = sum(run.rounds for run in runs)
        repeat = f"{open_run.repeat + 1} of {len(runs)}" if open_run else "done" if count == total else ""
        wait = ", ".join(waiting(open_run)) if open_run else ""
        asked = Text(visible(wait), no_wrap=True, overflow="ellipsis")  # cut where the terminal is narrow, before the others are
        table.add_row(Text(visible(algorithm)), ProgressBar(total=total, completed=count), f"{count} of {total}", repeat, asked)
    return table


def progress_of(info: StudyInfo) -> tuple[int, int]:
    """(rounds closed, rounds in all)."""
    return sum(_closed(run) for run in info.runs), sum(run.rounds for run in info.runs)


def waiting(run: RunInfo) -> list[str]:
    """The nodes that were asked and have not answered yet."""
    return [node for node in run.asked if node not in run.heard]


def _closed(run: RunInfo) -> int:
    """In the cycle that is under way."""
    return run.rounds if run.state == "finished" else min(run.round - run.cycle * (run.rounds + 1), run.rounds)


def told_state(info: StudyInfo) -> str:
    """The state of a study: "resting" between two cycles, and how many nodes it waits for before it can go on."""
    if info.state != "running":
        return info.state
    if info.schedule and all(run.state == "resting" for run in info.runs):
        return "resting"
    short = any(run.state == "waiting" for run in info.runs) and info.offering < info.least_nodes
    still = not any(run.state in ("training", "measuring") for run in info.runs)
    return f"waiting for nodes, {info.offering} of {info.least_nodes} here" if short and still else "running"


def cycle_of(info: StudyInfo, date: str = "%Y-%m-%d %H:%M") -> tuple[str, str]:
    """The cycle that a study is in, counted from 1, and when the next begins; "-" where there is none."""
    schedule = info.schedule
    if schedule is None:
        return "-", "-"
    more = info.state == "running" and (schedule.times is None or schedule.cycle + 1 < schedule.times)
    of = "" if schedule.times is None else f" of {schedule.times}"
    return f"{schedule.cycle + 1}{of}", time.strftime(date, time.localtime(schedule.due)) if more else "-"


def list_of(found: Sequence[StudyInfo]) -> list[list[str]]:
    """The table of studies, its first line the headers. With schedules it has shorter dates and digests, and `by` only where
    somebody else than the coordinator's own machine has started one: so it stays in 80 cells.
    """
    scheduled = any(each.schedule for each in found)
    said = not scheduled or any(each.by != "operator" for each in found)
    date, digits = ("%m-%d %H:%M", 8) if scheduled else ("%Y-%m-%d %H:%M", 12)
    lines = [["study", "digest", "state", "rounds", "started", *(("by",) if said else ())]]
    lines[0] += ["cycle", "next"] if scheduled else []
    for each in found:
        done, whole = progress_of(each)
        started = time.strftime(date, time.localtime(each.started))
        told = [visible(each.name), each.digest[7 : 7 + digits], told_state(each), f"{done} of {whole}", started]
        lines.append([*told, *([visible(each.by)] if said else []), *(cycle_of(each, date) if scheduled else ())])
    return lines


def print_cycles(found: Results, by_cycle: Mapping[int, Results]) -> None:
    """What the plan's algorithm did on the nodes' test examples, cycle by cycle, on standard output."""
    from freehold.cli.console import output
    from freehold.cli.show import table
    from freehold.study.federated import mean_figure

    lines = [["cycle", "measured", "nodes", "mean of the metric"]]
    for each in (c for c in found.cycles if c.index in by_cycle):
        results = by_cycle[each.index]
        nodes = {node for told in results.measures.values() for node in told}
        mean = mean_figure(results)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.ended))
        lines.append([str(each.index + 1), when, str(len(nodes)), "-" if mean is None else f"{mean:.4f}"])
    table(lines, empty="No cycle is measured yet.")
    output().print("")


def print_runs(info: StudyInfo, results: Results) -> None:
    """A study's runs, round times and bytes, on standard output."""
    from freehold.cli.console import output
    from freehold.cli.show import table
    from freehold.node.page import size

    console = output()
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.started))
    console.print(f"{visible(info.name)}: {told_state(info)}", style="bold")
    console.print(f"plan {info.digest}, started {started}" + (f", {visible(info.reason)}" if info.reason else ""))
    if info.schedule:
        cycle, due = cycle_of(info)
        console.print(f"cycle {cycle}, the next begins {due}" if due != "-" else f"cycle {cycle}, the last")
    lines = [["algorithm", "repeat", "state", "rounds", "waits for"]]
    for run in info.runs:
        wait = ", ".join(waiting(run)) if run.state in ("training", "measuring") else ""
        lines.append([run.algorithm, str(run.repeat + 1), run.state, f"{_closed(run)} of {run.rounds}", visible(wait) or "-"])
    table(lines, empty="No runs.")
    seconds = median_round(results)
    if seconds is not None:
        console.print(f"\nA round takes {seconds:.3g} s (median of {sum(bool(r.heard) for r in results.rounds)})")
    for node, sent in sorted(results.sent_bytes.items()):
        console.print(f"{visible(node)} has sent {size(sent)} of contributions")
    console.print("")


def median_round(results: Results) -> float | None:
    """Seconds from a round's opening to its closing; None before the first has closed."""
    seconds = [each.seconds for each in results.rounds if each.heard]
    return statistics.median(seconds) if seconds else None
