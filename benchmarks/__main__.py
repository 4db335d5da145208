"""Run benchmarks, write one JSON file each to benchmarks/results, and print what they found.

`python -m benchmarks [commands|federation|connections|peers|sandbox|vault|audit|ledger|arena …]`; without a name, all nine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import arena, audit, commands, connections, federation, ledger, sandbox, vault
from benchmarks.machine import facts
from benchmarks.peers import run as peers
from benchmarks.table import tables

RESULTS = Path(__file__).with_name("results")
ALL = ("commands", "federation", "connections", "peers", "sandbox", "vault", "audit", "ledger", "arena")


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m benchmarks`."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)}; all without a name")
    made.add_argument("--size", help="of the model in federation and peers: 10kb, 1mb, 50mb or 1gb, between commas")
    made.add_argument("--rounds", type=int, help="in federation, connections and peers")
    made.add_argument("--nodes", default="10,100,1000,10000", help="in connections, between commas")
    made.add_argument("--poll", type=float, default=25.0, help="seconds that an answer may be held back in connections")
    made.add_argument("--peers", default="flower,nvflare", help="in peers, between commas")
    return made


def chosen(told: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Name -> what runs it."""
    sizes = told.size.split(",") if told.size else None
    rounds = {"rounds": told.rounds} if told.rounds else {}
    plan = {size: (1 if size == "1gb" else 4, told.rounds or {"10kb": 60, "1mb": 20}.get(size, 4)) for size in sizes or ()}
    return {
        "commands": commands.run,
        "federation": lambda: federation.run(plan or None),
        "connections": lambda: connections.run([int(n) for n in told.nodes.split(",")], poll_s=told.poll, **rounds),
        "sandbox": sandbox.run,
        "vault": vault.run,
        "audit": audit.run,
        "ledger": ledger.run,
        "arena": arena.run,
        "peers": lambda: peers.run(sizes or ("10kb", "50mb"), told.peers.split(","), **rounds),
    }


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> None:
    """Run what was asked for."""
    made = parser()
    told = made.parse_args(arguments)
    if unknown := set(told.names) - set(ALL):
        made.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    results.mkdir(exist_ok=True)
    for name, work in chosen(told).items():
        if told.names and name not in told.names:
            continue
        found = work()
        text = json.dumps({"machine": facts(), "results": found}, indent=2) + "\n"
        (results / f"{name}.json").write_text(text, encoding="utf-8")
        if name == "connections":
            connections.plot(found["points"], results / "connections.png")
        print(f"\n{name}: {results / name}.json\n{tables(name, found)}", flush=True)


if __name__ == "__main__":
    main()
