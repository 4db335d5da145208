"""`freehold node`: a data owner's side. `start` becomes `python -m freehold.node`, which is small and stays."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freehold.cli import owner
from freehold.cli.coordinator import LogOption
from freehold.cli.nodestate import NodeName, NodeState, node_state
from freehold.cli.options import grouped
from freehold.cli.places import AsJson, CoordinatorOptions, admin
from freehold.errors import NotJoined, UsageError
from freehold.settings import only_one

if TYPE_CHECKING:
    from freehold.node.credentials import Credentials

node = typer.Typer(no_args_is_help=True, help="Run a node, which holds data, and see what it does.")

for each in (owner.pending, owner.show, owner.approve, owner.deny):
    node.command()(each)
node.add_typer(owner.policy, name="policy")


@node.callback()
def _start() -> None:
    pass


@node.command()
def start(
    name: NodeName = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, metavar="PORT", help="The node's own page, on loopback; none if not given."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="URL", help="Where to join; a coordinator of its own if not given.")
    ] = None,
    join_file: Annotated[
        str | None, typer.Option("--join-file", metavar="FILE", help="The join token's file; - is standard input.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=FILE", help="A table, by the name that plans call it; repeatable."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="The owner's policy; policy.toml in the state folder if not given."),
    ] = None,
    federation: Annotated[
        str | None, typer.Option("--federation", metavar="NAME", help="Its name; the node joins no other one.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="A certificate of your own CA, in place of a token.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The key of --cert.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Roots of the coordinator's certificate.")] = None,
    insecure_no_sandbox: Annotated[
        bool,
        typer.Option("--insecure-no-sandbox", help="Run training code without a sandbox, trusting every plan."),
    ] = False,
    state: NodeState = None,
    log: LogOption = None,
) -> None:
    """Join if it has not joined, then work until SIGTERM or Ctrl-C. node.toml in the state folder may say all of this."""
    given: dict[str, object] = {
        "--name": name,
        "--port": port,
        "--coordinator": coordinator,
        "--join-file": join_file,
        "--policy": policy,
        "--federation": federation,
        "--cert": cert,
        "--key": key,
        "--ca": ca,
        "--state": state,
        "--log": log.value if log else None,
    }
    arguments = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    arguments += ["--insecure-no-sandbox"] if insecure_no_sandbox else []
    arguments += [part for pair in data or () for part in ("--data", pair)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "freehold.node", *arguments])


@node.command()
def status(name: NodeName = None, state: NodeState = None, as_json: AsJson = False) -> None:
    """Say what the node on this machine is doing. Exit code 0: connected, or resting by its owner's rules; 1: neither."""
    folder = node_state(name, state)
    told = _live(folder) or _resting(folder)
    if as_json:
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        _show(told)
    if told["state"] not in ("connected", "resting"):
        raise typer.Exit(1)


@node.command()
def leave(
    name: NodeName = None,
    state: NodeState = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="Delete the node's personal models, their key and copies of columns, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Leave the federation for good, and print a receipt. The node must not be running; its data is not touched."""
    from dataclasses import asdict

    from freehold.cli.console import visible
    from freehold.node.leave import leave

    receipt = leave(node_state(name, state), erase=erase)
    if as_json:
        sys.stdout.write(json.dumps(asdict(receipt)) + "\n")
        return
    kept = "kept in the vault" if receipt.erased_states is None else f"erased: {receipt.erased_states} personal states"
    sys.stdout.write(
        f"{visible(receipt.node)} has left {visible(receipt.federation)} at {_time(receipt.left)}.\n"
        f"  certificate  revoked by {receipt.coordinator}\n"
        f"  models       {kept}\n"
        f"  data         untouched; it never left this machine\n"
        f"  what left    contributions and sums that were counted stay in the shared model: a mean cannot be un-averaged\n"
    )


@node.command("list")
@grouped
def list_(where: CoordinatorOptions, as_json: AsJson = False) -> None:
    """List the nodes that a coordinator knows."""
    from freehold.wire.admin import Status

    nodes = admin(where).get("/v1/status", Status).nodes
    if as_json:
        told = [{"name": n.name, "datasets": n.datasets, "last_seen": n.last_seen, "connected": n.connected} for n in nodes]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.show import table

    lines = [["node", "state", "data", "last heard"]]
    for each in nodes:
        heard = _ago(each.last_seen) if each.last_seen else "not since the start"
        lines.append([each.name, "connected" if each.connected else "silent", ", ".join(each.datasets) or "-", heard])
    table(lines, empty="No nodes yet. `freehold token create` makes a token to join with.")


def _live(folder: Path) -> dict[str, Any] | None:
    """What a running node's page says; None where there is no page."""
    try:
        url = str(json.loads((folder / "page.json").read_text(encoding="utf-8"))["url"])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url + "status.json", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


def _resting(folder: Path) -> dict[str, Any]:
    """What the state folder says of a node without a page."""
    from freehold.node import credentials
    from freehold.node.page import studies_of
    from freehold.node.rest import rest_now

    if not folder.is_dir():
        raise NotJoined(f"There is no node in {folder}.", hint="`freehold node start` makes one.")
    found: Credentials | None
    try:
        found = credentials.load(folder)
    except NotJoined:
        found = None
    try:
        with only_one(folder, "node"):
            running = False
    except UsageError:
        running = True
    rest = rest_now(folder / "node.toml", time.time()) if running else None
    return {
        "node": found.membership.node if found else folder.name.removeprefix("node-"),
        "federation": found.membership.federation if found else None,
        "coordinator": found.membership.url if found else "",
        "state": "running, without a page" if running else "not running",
        "certificate": {"not_before": found.not_before, "not_after": found.not_after} if found else None,
        "rest": {"why": rest.why, "until": rest.until} if rest else None,
        "last_error": "",
        "last_choice": "",
        "studies": studies_of(folder),
    }


def _show(told: dict[str, Any]) -> None:
    from freehold.cli.console import output, visible
    from freehold.node.page import resting, size

    console = output()
    console.print(f"{visible(told['node'])}: {told['state']}", style="bold")
    until = (told.get("certificate") or {}).get("not_after")
    facts = {
        "federation": told["federation"],
        "coordinator": told["coordinator"],
        "certificate": f"until {_time(until)}" if until else "none",
        "rounds": f"{told['rounds']} since it started" if "rounds" in told else None,
        "sent": f"{size(told['sent_bytes'])} of contributions since then" if "sent_bytes" in told else None,
        "sandbox": told.get("sandbox") or None,
        "rest": resting(told["rest"]) if told.get("rest") else None,
        "your choice": told.get("last_choice") or None,
        "last error": told["last_error"] or None,
    }
    for label, value in facts.items():
        if value is not None:
            console.print(f"  {label:<12} {visible(str(value))}")
    for study in told["studies"]:
        console.print(f"  study        {visible(str(study['name']))}: {study['examples']} examples here")
        for row in study["worth"]:
            console.print(
                f"    {visible(row['algorithm'])}: {row['figure']} {row['own']:.3f} on own tests, alone {row['alone']:.3f}"
            )


def _time(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _ago(unix: float) -> str:
    return f"{max(time.time() - unix, 0):.0f} s ago"
