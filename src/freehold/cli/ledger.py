"""`freehold ledger` and `freehold node budget`: what left a node, whether that is all, and what it cost."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.nodestate import NodeName, NodeState, node_state
from freehold.cli.places import AsJson
from freehold.errors import NotJoined, UsageError

if TYPE_CHECKING:
    from freehold.cli.witnesses import Known
    from freehold.node.audit import Verdict
    from freehold.node.lines import Line

ledger = typer.Typer(no_args_is_help=True, help="Read a node's ledger: what left, what was refused, and whether it is whole.")

LAST = 40
WIDE = 32  # characters of what a line says; --json has all of them
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="From then on: 24h, 7d, or a date such as 2026-01-31."),
]


@ledger.callback()
def _start() -> None:
    pass


@ledger.command()
def show(
    name: NodeName = None,
    state: NodeState = None,
    since: Since = None,
    lines: Annotated[int, typer.Option("--lines", min=1, metavar="N", help="So many of the last ones; all with --since.")] = LAST,
    as_json: AsJson = False,
) -> None:
    """Show what left this node, what it refused and what its owner decided. The node may be running."""
    from collections import deque

    from freehold.node.audit import entries

    start = _unix(since)
    found = entries(_folder(name, state), since=start or 0.0)
    if as_json:
        for line in found if start is not None else deque(found, lines):
            sys.stdout.write(json.dumps(_told(line)) + "\n")
        return
    from freehold.cli.show import table

    rows = [_row(line) for line in (found if start is not None else deque(found, lines))]
    table([["n", "time", "what", "round", "bytes", "ε at δ"], *rows], empty="Nothing in that time.")


@ledger.command()
def verify(
    name: NodeName = None,
    state: NodeState = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="A ledger that was exported, instead of a node's own.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="HEX", help="The public key that it must have; the node's own if not given.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="With --file: checkpoint.json, as the node has it.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="Roots that the checkpoint must lead to; the node's if not given.")
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="Ask the coordinator for the furthest line that it has witnessed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a ledger. Exit code 1: it is not whole, and which line is the first that is wrong is said."""
    from freehold.cli import witnesses
    from freehold.node.audit import verify

    if file is not None and coordinator:
        raise UsageError("--coordinator is for a node's own ledger.", hint="With --file give --checkpoint and --ca.")
    if file is None and checkpoint is not None:
        raise UsageError("--checkpoint belongs to --file.", hint="A node's own checkpoint is found by itself.")
    if checkpoint is not None and ca is None:
        raise UsageError("--checkpoint needs the roots that it must lead to.", hint="Give --ca FILE, the federation's roots.")
    if key is not None and not re.fullmatch("[0-9a-f]{64}", key):
        raise UsageError(
            f"--key is {key[:80]!r}, which is no public key: 64 digits of 0 to 9 and a to f.",
            hint="`freehold ledger export` and `freehold ledger verify` print it, on the node.",
        )
    if file is not None and not file.is_file():
        raise UsageError(f"There is no ledger {file}.", hint="`freehold ledger export --output FILE` writes one, on the node.")
    folder = _folder(name, state) if file is None else None
    known = (
        witnesses.own(folder, ca, ask=coordinator) if folder is not None else witnesses.given(checkpoint, ca)
    )  # before the ledger is read: what a running node adds meanwhile is no fault
    path = file or witnesses.ledger_in(folder)
    found = verify(path, key=key or known.key, witnessed=known.lines)
    told = {"file": str(path), "lines": found.lines, "good": found.wrong is None, "key": found.key, "head": found.head.hash}
    told |= {"wrong": found.wrong, "why": found.why, "notes": [*found.notes, *known.notes], "budget": known.budget}
    told |= {"checkpoint": known.checkpoint, "checkpoint_fault": known.fault, "control": known.control}
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _say(path, found, known)
    if found.wrong is not None or known.budget or known.fault:
        raise typer.Exit(1)


@ledger.command()
def export(
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where it goes; - is standard output.")],
    name: NodeName = None,
    state: NodeState = None,
) -> None:
    """Write the ledger as it is, signatures and all, for others to verify with --file and --key."""
    from freehold.cli.output import check_writable, write
    from freehold.node.audit import verify
    from freehold.node.ledger import FILE

    check_writable(output)
    folder = _folder(name, state)
    path = folder / FILE
    found = verify(path)
    write(output, path.read_text(encoding="utf-8", errors="replace"))
    sys.stderr.write(f"{found.lines} lines; freehold ledger verify --file FILE --key {found.key}\n")


def budget(
    name: NodeName = None,
    state: NodeState = None,
    delta: Annotated[float, typer.Option("--delta", metavar="DELTA", help="The δ at which ε is told.")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Tell the ε that each data set of this node has cost, over all studies."""
    from freehold.cli.witnesses import needs_budget
    from freehold.node.budget import composed, read
    from freehold.node.lines import public_key

    if not 0 < delta < 1:
        raise UsageError(f"--delta is {delta}, but must lie between 0 and 1.", hint="For example 1e-5.")
    folder = _folder(name, state)
    kept = read(folder.parent / "budget", public_key(folder) or "")
    if kept is None:
        needs_budget(folder)
    sets = kept.sets if kept else {}
    rows: list[dict[str, object]] = []
    shown = [["data", "plan", "rounds", "unit", f"ε at δ = {delta:g}"]]
    for dataset, entries in sorted(sets.items()):
        plans = {entry.plan: [e for e in entries if e.plan == entry.plan] for entry in entries}
        for plan, mine in [*plans.items(), ("all studies", entries)]:
            value = composed(mine, delta)
            rounds, units = sum(e.rounds for e in mine), sorted({entry.unit for entry in mine})
            epsilon = value if math.isfinite(value) else None
            rows.append({"dataset": dataset, "plan": plan, "rounds": rounds, "units": units, "delta": delta, "epsilon": epsilon})
            shown.append([dataset, plan.removeprefix("sha256:")[:16], str(rounds), ", ".join(units), _epsilon(epsilon)])
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    from freehold.cli.show import table

    table(shown, empty="Nothing was spent.")


def _say(path: Path, found: Verdict, known: Known) -> None:
    from freehold.cli.console import output, visible

    console = output()
    if found.wrong is None:
        console.print(f"The ledger is whole: {found.lines} lines.", style="bold")
    else:
        console.print(f"Line {found.wrong} is wrong: {visible(found.why)}.", style="bold red")
        console.print(f"  {found.lines} lines were read; those before it are as the node wrote them.")
    console.print(f"  file  {visible(str(path))}", soft_wrap=True)
    console.print(f"  key   {visible(found.key)}", soft_wrap=True)
    if known.checkpoint is not None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.checkpoint["time"]))
        console.print(f"  witnessed by the coordinator up to line {known.checkpoint['n']}, {when}")
    elif not known.fault:
        console.print("  witnessed by nobody: lines missing at the end would not be noticed", style="yellow")
    for fault in filter(None, (known.budget, known.fault)):
        console.print(visible(fault), style="bold red", soft_wrap=True)
    for note in [*found.notes, *known.notes]:
        console.print(f"  note  {visible(note)}")


def _row(line: Line) -> list[str]:
    from freehold.cli.console import visible

    when = time.strftime("%m-%d %H:%M", time.localtime(line.time))
    what = visible(line.study or line.text or line.peer or "")
    kind = line.kind if line.code is None else f"{line.kind} {line.code}"
    shown = f"{kind}: {what}" if what else kind
    shown = shown if len(shown) <= WIDE else f"{shown[: WIDE - 1]}…"
    cost = "no noise" if line.kind == "contribution" and line.epsilon is None else ""
    if line.epsilon is not None:
        cost = _epsilon(line.epsilon) + (f" at {line.delta:g}" if line.delta else "")
    size = "" if line.bytes is None else str(line.bytes)
    return [str(line.n), when, shown, "" if line.round is None else str(line.round), size, cost]


def _epsilon(value: object) -> str:
    from freehold.report.cost import rounded_up

    return rounded_up(value) if isinstance(value, float) else "unbounded"


def _told(line: Line) -> dict[str, object]:
    from msgspec import to_builtins

    found: dict[str, object] = to_builtins(line)
    found.pop("sig", None)
    return found


def _folder(name: str | None, state: Path | None) -> Path:
    folder = node_state(name, state) / "ledger"
    if not folder.is_dir():
        raise NotJoined(f"There is no ledger in {folder.parent}.", hint="A node begins it with its first piece of work.")
    return folder


def _unix(since: str | None) -> float | None:
    if since is None:
        return None
    from freehold.cli.token import seconds

    try:
        return datetime.fromisoformat(since).timestamp()
    except ValueError:
        return time.time() - seconds(since)
