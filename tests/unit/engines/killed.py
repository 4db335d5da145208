"""`python -m tests.unit.engines.killed`: for each line of JSON on standard input, a fork that works on an arena until it dies.

A line says `folder`, `seed`, `failpoints` and `cpu_s`: after so much processor time it is killed wherever it is. The answer is
how it ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch

from freehold.core import Tree, stack
from freehold.engines import Arena, Sealed
from freehold.failpoints import arm

CLIENTS = tuple(f"c{i}" for i in range(6))
LIKE: Tree = {"v": torch.zeros(700), "n": torch.zeros(3, dtype=torch.int64)}
ROUNDS = 400
CHECKPOINT = "checkpoint.json"


def enroll(shared: Tree) -> Tree:
    return LIKE


def state(client: str, round_: int) -> Tree:
    value = 100 * round_ + CLIENTS.index(client)
    return {"v": torch.full((700,), float(value)), "n": torch.full((3,), value)}


def plan(seed: int, round_: int) -> tuple[list[str], bool, bool]:
    """Who is asked in a round, whether it counts, and whether a checkpoint follows."""
    drawn = random.Random(f"{seed} {round_}")
    return drawn.sample(CLIENTS, drawn.randint(1, len(CLIENTS))), drawn.random() < 0.8, drawn.random() < 0.3


def expected(seed: int, rounds: int) -> dict[str, Tree]:
    """What is committed after so many rounds."""
    found: dict[str, Tree] = {}
    for round_ in range(rounds):
        clients, counted, _ = plan(seed, round_)
        found |= {c: state(c, round_) for c in clients} if counted else {}
    return found


def resumed(folder: Path) -> tuple[Arena, int]:
    """The arena of the last checkpoint, or a new one, and the rounds that are done."""
    path = folder / CHECKPOINT
    if not path.exists():
        return Arena.create(folder / "arena", CLIENTS, enroll, like=LIKE), 0
    told = json.loads(path.read_bytes())
    return Arena.open(folder / "arena", CLIENTS, enroll, like=LIKE, at=Sealed(*told["at"])), told["rounds"]


def work(folder: Path, seed: int, until: int = ROUNDS) -> None:
    """Go on from the checkpoint."""
    arena, done = resumed(folder)
    for round_ in range(done, until):
        clients, counted, saved = plan(seed, round_)
        arena.scatter(clients, stack([state(c, round_) for c in clients]))
        arena.settle(counted)
        if saved:
            sealed = arena.seal()
            new = folder / "new"
            new.write_text(json.dumps({"at": sealed, "rounds": round_ + 1}), encoding="ascii")
            new.replace(folder / CHECKPOINT)
            arena.keep(sealed)
    arena.close()


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            if told["cpu_s"]:
                signal.setitimer(signal.ITIMER_VIRTUAL, told["cpu_s"])  # whose signal ends a process wherever it is
            arm(told["failpoints"])
            work(Path(told["folder"]), told["seed"])
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
