"""Run benchmarks, write one JSON file each to benchmarks/results, and print what they found.

`python -m benchmarks [NAME …]`; without a name, all.
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
from benchmarks.simulation import run as simulation
from benchmarks.simulation.plot import plot as plot_simulation
from benchmarks.table import tables

RESULTS = Path(__file__).with_name("results")
ALL = ("commands", "federation", "connections", "peers", "sandbox", "vault", "audit", "ledger", "arena", "simulation")


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m benchmarks`."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)}; all without a name")
    made.add_argument("--size", help="of the model in federation and peers: 10kb, 1mb, 50mb or 1gb, between commas")
    made.add_argument("--rounds", type=int, help="in federation, connections, peers and simulation")
    made.add_argument("--nodes", default="10,100,1000,10000", help="in connections, between commas")
    made.add_argument("--poll", type=float, default=25.0, help="seconds that an answer may be held back in connections")
    made.add_argument("--peers", help="in peers and simulation, between commas; - for none")
    made.add_argument("--work", help="in simulation, between commas")
    made.add_argument("--executors", default="", help="in simulation: besides what the engine chooses, these, between commas")
    made.add_argument("--device", default="cpu", help="in simulation: cpu or cuda")
    made.add_argument("--only-works", action="store_true", help="in simulation: without start, memory and growth")
    return made


def chosen(told: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Name -> what runs it."""
    sizes = told.size.split(",") if told.size else None
    asked = None if told.peers is None else [name for name in told.peers.split(",") if name != "-"]
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
        "peers": lambda: peers.run(sizes or ("10kb", "50mb"), ("flower", "nvflare") if asked is None else asked, **rounds),
        "simulation": lambda: simulation.run(
            told.work.split(",") if told.work else tuple(simulation.WORKLOADS),
            tuple(simulation.PEERS) if asked is None else asked,
            told.rounds,
            told.device,
            [name for name in told.executors.split(",") if name],
            not told.only_works,
        ),
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
        if name == "simulation":
            plot_simulation(found, results / "simulation.png")
        print(f"\n{name}: {results / name}.json\n{tables(name, found)}", flush=True)


if __name__ == "__main__":
    main()
