"""A comparison on the terminal: rows, clients, sizes, and the finding in words, in the width that there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from freehold.cli.console import output, visible
from freehold.report import (
    ClientFacts,
    Comparison,
    RowSummary,
    Tuning,
    chosen_lines,
    client_lines,
    facts_lines,
    finding,
    lines,
    summarize,
    tuning_finding,
    tuning_lines,
)
from freehold.report.cost import cost_lines, heading
from freehold.report.tables import by_client
from freehold.report.wording import CAUTION, counted, headline, lopsided, setting

if TYPE_CHECKING:
    from rich.console import Console

MOST_CLIENTS = 12  # beyond this, the extremes are shown
EXTREMES = 3  # at each end
GAP = 2  # cells between columns
# Columns of the table of rows, from those that matter most; where the width ends, the rest is left to the files.
PRIORITY = ("mean ", "better", "balanced", "published", "gain,", "worse", "worst", "newcomers", "±", "log-loss", "RMSE", "MAE")
_STYLES = {"▲": "green", "▼": "red", "○": "dim"}


def show(comparison: Comparison) -> None:
    """Print all of it to standard output."""
    console = output()
    summaries = summarize(comparison)
    console.print(Text(visible(comparison.title), "bold"))
    console.print(f"{counted(len(comparison.clients), comparison.noun)}, {setting(comparison)}")
    for warning in comparison.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), visible(warning)))
    console.print()
    _rows(console, lines(comparison, summaries))
    console.print(Text("▲ gain, ▼ loss, ○ cannot tell: each compared with training alone, each figure rounded by itself", "dim"))
    if costs := cost_lines(comparison, summaries):
        console.print(Text(f"\n{visible(heading(comparison))}", "bold"))
        _blocks(console, costs)
    chosen, what = _chosen(comparison, summaries)
    console.print(Text(f"\n{what}", "bold"))
    _blocks(console, by_client(client_lines(comparison, summaries, clients=chosen)))
    if any(client.name in lopsided(comparison) for client in chosen):
        console.print(Text(f"{CAUTION} accuracy says little there; bal.: balanced accuracy against alone, points", "dim"))
    console.print(Text("\nWhat they have", "bold"))
    _blocks(console, facts_lines(comparison, clients=chosen))
    console.print()
    for sentence in finding(comparison, summaries):
        console.print(Text(visible(sentence)))
    for note in comparison.notes:
        console.print(Text.assemble(("note: ", "dim"), visible(note)))
    console.print()


def _chosen(comparison: Comparison, summaries: Sequence[RowSummary]) -> tuple[list[ClientFacts], str]:
    """The clients to show, and a heading: all of a few, else those that lose and gain most with the leading row."""
    every = list(comparison.participants)
    many = comparison.noun[1]
    row = headline(comparison, summaries)
    if len(every) <= MOST_CLIENTS or row is None:
        return every[:MOST_CLIENTS], f"By {comparison.noun[0]}"
    summary = next(each for each in summaries if each.name == row.name)

    def gain(client: ClientFacts) -> float:
        paired = summary.per_client[client.name].paired
        return paired.difference if paired is not None and paired.difference is not None else 0.0

    ordered = sorted(every, key=gain)
    title = visible(row.title)
    return [*ordered[:EXTREMES], *ordered[-EXTREMES:]], f"The {many} that get least and most from {title}, of {len(every)}"


def _rows(console: Console, table: list[list[str]]) -> None:
    """The columns that fit, the important ones first, in their own order."""
    order = sorted(range(1, len(table[0])), key=lambda index: _rank(table[0][index]))
    kept, room = [0], console.width - _width(table, 0)
    for index in order:
        need = GAP + _width(table, index)
        if need <= room:
            kept.append(index)
            room -= need
    kept.sort()
    _print(console, [[line[index] for index in kept] for line in table])
    left_out = [table[0][index] for index in range(len(table[0])) if index not in kept]
    if left_out:
        console.print(Text(f"Not shown, but in --json and --report, or on a wider terminal: {'; '.join(left_out)}.", "dim"))


def _rank(header: str) -> int:
    if header.startswith("mean over"):
        return len(PRIORITY)
    return next((rank for rank, start in enumerate(PRIORITY) if header.startswith(start)), len(PRIORITY))


def _blocks(console: Console, table: list[list[str]]) -> None:
    """The whole table; columns that do not fit go below, beside the first column once more."""
    index, first = 1, _width(table, 0)
    while index < len(table[0]):
        block, room = [0], console.width - first
        while index < len(table[0]) and (len(block) == 1 or GAP + _width(table, index) <= room):
            block.append(index)
            room -= GAP + _width(table, index)
            index += 1
        _print(console, [[line[at] for at in block] for line in table])
        if index < len(table[0]):
            console.print()


def _width(table: list[list[str]], index: int) -> int:
    """Cells that a column needs: headers are broken between words, values after a comma."""
    words = table[0][index].split() or [""]
    pieces = [piece for line in table[1:] for piece in re.split(r"(?<=,) (?=\D)", line[index])]
    return max(map(cell_len, (*words, *pieces)))


def _print(console: Console, table: list[list[str]]) -> None:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    widths = _shared_out(console.width, table)
    for index, header in enumerate(table[0]):
        numbers = index > 0 and all(re.fullmatch(r"[−\d., \u202f–±]+", line[index]) for line in table[1:])
        shown.add_column(
            Text(header),
            justify="right" if numbers else "left",
            vertical="bottom",
            overflow="fold",
            width=widths[index],
        )
    for line in table[1:]:
        shown.add_row(*(_cell(text) for text in line))
    console.print(shown)


def _shared_out(room: int, table: list[list[str]]) -> list[int]:
    """The width of each column: what it needs, and of what is left, as much as it can use, from the left."""
    widths = [_width(table, index) for index in range(len(table[0]))]
    spare = room - sum(widths) - GAP * (len(widths) - 1)
    for index in range(len(table[0])):
        more = max(0, min(spare, max(cell_len(line[index]) for line in table) - widths[index]))
        widths[index] += more
        spare -= more
    return widths


def _cell(text: str) -> Text:
    marked = Text(text)
    for mark, style in _STYLES.items():
        marked.highlight_regex(re.escape(mark), style)
    return marked


def show_tuning(tuning: Tuning) -> None:
    """Print what was tried, what was chosen and what that changed to standard output."""
    console, comparison = output(), tuning.comparison
    trials = counted(tuning.trials, ("trial", "trials"))
    console.print(Text(visible(comparison.title), "bold"))
    console.print(f"{counted(len(comparison.clients), comparison.noun)}, {setting(comparison)}, {trials} of each algorithm")
    for warning in comparison.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), visible(warning)))
    console.print(Text("\nWhat tuning changed", "bold"))
    _blocks(console, tuning_lines(tuning))
    console.print(Text("▲ gain, ▼ loss, ○ cannot tell: the chosen trial compared with the defaults, on test examples", "dim"))
    console.print(Text("\nWhat was chosen, by validation", "bold"))
    _blocks(console, chosen_lines(tuning))
    console.print()
    for sentence in tuning_finding(tuning):
        console.print(Text(visible(sentence)))
    for note in comparison.notes:
        console.print(Text.assemble(("note: ", "dim"), visible(note)))
    console.print()


def table(lines: list[list[str]], *, empty: str) -> None:
    """Print a plain table to standard output, its first line the headers; `empty` where there is nothing else."""
    console = output()
    if len(lines) < 2:
        console.print(empty)
        return
    _blocks(console, lines)
