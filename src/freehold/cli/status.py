"""`freehold status`: is all well at a coordinator, for people and for monitoring."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.options import grouped
from freehold.cli.places import AsJson, CoordinatorOptions, admin
from freehold.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from freehold.wire.admin import RunInfo, Status

EVERY_S = 2.0


@grouped
def status(
    where: CoordinatorOptions,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Say how a coordinator is, by default this machine's. Exit code 0: well; 1: something is amiss; 2: it does not answer."""
    from freehold.wire.admin import Status

    coordinator = admin(where)
    if watch and as_json:
        raise UsageError("--watch is for people, --json for programs.", hint="Give one of them.")
    found = coordinator.get("/v1/status", Status)
    if as_json:
        sys.stdout.write(json.dumps({**_plain(found), "amiss": amiss(found)}, indent=1) + "\n")
    else:
        from freehold.cli.console import output

        console = output()
        if watch:
            from rich.live import Live

            with Live(_shown(found), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(EVERY_S)
                    found = coordinator.get("/v1/status", Status)
                    live.update(_shown(found), refresh=True)
        console.print(_shown(found))
    if amiss(found):
        raise typer.Exit(1)


def amiss(found: Status) -> list[str]:
    """What an operator should look at: silent nodes, ledgers that went back, failed studies, and studies that cannot go on."""
    told = [f"node {node.name} is silent" for node in found.nodes if not node.connected]
    told += [f"node {node.name} runs training code without a sandbox" for node in found.nodes if node.sandbox == "off"]
    told += [f"node {node.name} does not train: its sandbox does not hold" for node in found.nodes if node.sandbox == "refused"]
    told += [f"the ledger of node {node.name}: {node.ledger_fault}" for node in found.nodes if node.ledger_fault]
    told += [f"study {study.name} has failed: {study.reason}" for study in found.studies if study.state == "failed"]
    now = time.time()
    for study in found.studies:
        waits = [run for run in study.runs if run.state == "training" and run.deadline < now]
        told += [f"study {study.name}: round {run.round} of {run.algorithm} is past its deadline" for run in waits]
        told += [f"study {study.name}: {_stuck(run)}" for run in study.runs if study.state == "running" and is_stuck(run)]
    return told


def is_stuck(run: RunInfo) -> bool:
    """Whether so many nodes declined the open round that it cannot close."""
    return run.state == "training" and bool(run.declined) and len({*run.asked, *run.heard}) < run.needs


def _stuck(run: RunInfo) -> str:
    needs = f"{run.needs} answer{'s' if run.needs > 1 else ''}"
    return (
        f"round {run.round} of {run.algorithm} needs {needs}, has {len(run.heard)}, and nodes declined: {_declined(run)}. "
        "Their owners know why"
    )


def _declined(run: RunInfo) -> str:
    """Who declined and with which number, which is all that a node tells."""
    return ", ".join(f"{node} (error {code})" for node, code in run.declined.items())


def _waits(run: RunInfo) -> str:
    """What an open run waits for, for people; "" where none is open."""
    from freehold.cli.live import waiting

    if run.state not in ("training", "measuring"):
        return ""
    does = "measures, " if run.state == "measuring" else ""
    declined = f"; declined: {_declined(run)}" if run.declined else ""
    return f"{run.algorithm}, repeat {run.repeat + 1}: {does}waits for {', '.join(waiting(run)) or 'nobody'}{declined}"


def _shown(found: Status) -> RenderableType:
    from rich.text import Text

    from freehold.cli.console import visible
    from freehold.cli.live import cycle_of, progress_of, told_state

    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.since))
    connected = sum(node.connected for node in found.nodes)
    open_studies = [study for study in found.studies if study.state == "running"]
    lines = [
        f"{found.federation} at {found.url}, Freehold {found.release}, since {since}",
        f"nodes     {connected} of {len(found.nodes)} connected: " + (", ".join(node.name for node in found.nodes) or "none yet"),
        f"studies   {len(open_studies)} running, {len(found.studies) - len(open_studies)} over",
    ]
    if levels := Counter(node.sandbox for node in found.nodes if node.connected and node.sandbox):
        lines.append("sandboxes " + ", ".join(f"{level}: {count}" for level, count in sorted(levels.items())))
    for study in open_studies:
        done, whole = progress_of(study)
        cycle, due = cycle_of(study)
        schedule = "" if cycle == "-" else f", cycle {cycle}, the next {due}" if due != "-" else f", cycle {cycle}, the last"
        lines.append(f"          {study.name}: {told_state(study)}, {done} of {whole} rounds{schedule}")
        lines += [f"            {text}" for run in study.runs if (text := _waits(run))]
    if found.refused:
        lines.append("refused   " + ", ".join(f"error {code}: {count}×" for code, count in sorted(found.refused.items())))
    wrong = amiss(found)
    body = Text(visible("\n".join(lines)) + "\n")
    body.append(
        "All is well." if not wrong else visible("\n".join(f"Amiss: {text}" for text in wrong)), "yellow" if wrong else "green"
    )
    return body


def _plain(found: Status) -> dict[str, object]:
    from freehold.wire.messages import encode

    told: dict[str, object] = json.loads(encode(found))
    return told
