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

    from freehold.wire.admin import Status

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
    """What an operator should look at: silent nodes, ledgers that went back, failed studies, and studies past a deadline."""
    told = [f"node {node.name} is silent" for node in found.nodes if not node.connected]
    told += [f"node {node.name} runs training code without a sandbox" for node in found.nodes if node.sandbox == "off"]
    told += [f"node {node.name} does not train: its sandbox does not hold" for node in found.nodes if node.sandbox == "refused"]
    told += [f"the ledger of node {node.name}: {node.ledger_fault}" for node in found.nodes if node.ledger_fault]
    told += [f"study {study.name} has failed: {study.reason}" for study in found.studies if study.state == "failed"]
    now = time.time()
    for study in found.studies:
        waits = [run for run in study.runs if run.state == "training" and run.deadline < now]
        told += [f"study {study.name}: round {run.round} of {run.algorithm} is past its deadline" for run in waits]
    return told


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
