"""What processes that are killed do in the tests of the budget; forked from one that has loaded the accounting already."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from multiprocessing.context import ForkServerContext
from pathlib import Path

from freehold import failpoints
from freehold.node.budget import Limits
from freehold.node.door import Door, Piece
from freehold.plan import AlgorithmRef, Plan, Privacy, TaskRef, Training, runs_of
from freehold.privacy.accounting import Mechanism, epsilon

ROUNDS = 4


def plan(noise: float | None = 4.0, *, name: str = "p", repeats: int = 1) -> Plan:
    """A plan with this noise for each client."""
    privacy = Privacy() if noise is None else Privacy(unit="client", max_norm=1.0, noise_multiplier=noise)
    return Plan(
        name=name,
        task=TaskRef(name="heart"),
        algorithm=AlgorithmRef(name="fedavg"),
        training=Training(rounds=ROUNDS, batch_size=8, epochs=1, weighting="uniform"),
        privacy=privacy,
        repeats=repeats,
    )


def piece(round: int = 0, *, of: Plan | None = None, limits: Limits | None = None, run: int = 0) -> Piece:
    """A round of it."""
    found = of or plan()
    return Piece(plan=found, run=runs_of(found)[run].id, round=round, dataset="heart", limits=limits or Limits())


def opened(state: Path) -> Door:
    """A guard's door."""
    return Door(state, node="alice", peer="https://c")


def cost(count: int, noise: float = 4.0) -> float:
    """ε of so many rounds."""
    return epsilon([noised(noise, count)], 1e-5)


def noised(noise: float, count: int = 1) -> Mechanism:
    """As a plan of such noise is accounted for."""
    return Mechanism(noise_multiplier=noise, count=count, lattice=noise * 2**24)


def three_rounds(state: str, points: str) -> None:
    """Let three contributions out, and note in <state>/sent which have left."""
    failpoints.arm(points)
    door, sent = opened(Path(state)), os.open(f"{state}/sent", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for round in range(3):
        what = piece(round)
        door.begin(what)
        door.send("contribution", what, sha256="ab" * 32, length=1)
        os.write(sent, b"%d\n" % round)


def killed(state: Path, points: str) -> tuple[int | None, list[str]]:
    """The end of such a process, as its exit code, and what had left."""
    process = _CONTEXT.Process(target=three_rounds, args=(str(state), points))
    process.start()
    process.join(120)
    path = state / "sent"
    return process.exitcode, path.read_text().split() if path.exists() else []


def _context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([__name__])
    return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as a library is first imported
    for _count in range(1, 5):
        cost(_count)
_CONTEXT = _context()
