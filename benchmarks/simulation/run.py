"""The comparison: per workload, all contenders agree with the plain loop, then take turns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.by_hand import by_hand
from benchmarks.peers.environment import Missing
from benchmarks.simulation import goals, scale, start
from benchmarks.simulation.contender import EXACT, KINK, Contender, Disagrees, allowed, apart
from benchmarks.simulation.ours import Ours
from benchmarks.simulation.peer import PEERS, Worker, working
from benchmarks.simulation.plain import Plain
from benchmarks.simulation.timing import Gemm, race, summary
from benchmarks.simulation.works import WORKLOADS, Ready, flop_of_round, ready
from freehold.errors import FreeholdError

GEMM = "gemm"
CHECKED = 2
"""Rounds that are run before the first that counts; the second is compared, so that personal states are in it."""
ROUNDS = 15
LONG_S = 2.0
"""Where a round of the plain loop takes longer, a third of the rounds has to do."""


def run(
    works: Sequence[str] = tuple(WORKLOADS),
    peers: Sequence[str] = tuple(PEERS),
    rounds: int | None = None,
    device: str = "cpu",
    executors: Sequence[str] = (),
    scales: bool = True,
) -> dict[str, Any]:
    """Everything that was asked for, as JSON has it; `scales`: also start, memory and growth."""
    check(device)
    torch.set_num_threads(1)
    for name in works:
        if name not in WORKLOADS:
            raise SystemExit(f"There is no work {name}; there are {', '.join(WORKLOADS)}.")
    for name in peers:
        if name not in PEERS:
            raise SystemExit(f"There is no peer {name}; there are {', '.join(PEERS)}.")
    found: dict[str, Any] = {"works": {}}
    for name in works:
        print(f"simulation: {name}, {WORKLOADS[name].title}", file=sys.stderr, flush=True)
        found["works"][name] = compare(ready(WORKLOADS[name], device), peers, rounds, executors)
    if scales:
        found["start"] = start.run("flwr" in peers)
        found["growth"] = scale.run()
    lines = [*goals.verdicts(found["works"]), *(goals.others(found["start"], found["growth"]) if scales else ())]
    found["goals"] = [verdict._asdict() for verdict in lines]
    return found


def check(device: str) -> None:
    """End with a line where there is no such device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("This PyTorch sees no CUDA device; leave out --device cuda, or install PyTorch for CUDA.")


def compare(made: Ready, peers: Sequence[str] = (), rounds: int | None = None, executors: Sequence[str] = ()) -> dict[str, Any]:
    """One workload: who agrees takes part; what each takes; why somebody is missing."""
    missing: dict[str, str] = {}
    agreement: dict[str, float] = {}
    with ExitStack() as stack:
        plain = Plain(made)
        pace = max(plain.round(index) for index in range(CHECKED))
        taking: dict[str, Contender] = {goals.PLAIN: plain}
        for name, make in entrants(made, peers, executors, stack).items():
            try:
                contender = make()
                for index in range(CHECKED):
                    contender.round(index)
                agreement[name] = agreed(contender, plain, made)
            except (Missing, Disagrees, FreeholdError, ValueError) as why:
                missing[name] = str(why)
                continue
            taking[name] = contender
        gemm = Gemm(made.device)
        count = rounds or (ROUNDS if pace < LONG_S else ROUNDS // 3)
        seconds = race({**taking, GEMM: gemm}, count, CHECKED)
        memory = {name: round(it.peak_mb(), 1) for name, it in taking.items() if isinstance(it, Worker)}
    peak = gemm.flop_per_s(seconds.pop(GEMM))
    return {
        "title": made.workload.title,
        "clients": len(made.clients),
        "examples": len(made.feed.y),
        "flop": flop_of_round(made),
        "on_gpu": made.device.type != "cpu",
        "gemm_flop_per_s": peak,
        "contenders": summary(seconds, goals.OURS, flop_of_round(made), peak),
        "seconds": seconds,
        "apart_from_plain": agreement,
        "peak_mb": memory,
        "missing": missing,
    }


def entrants(made: Ready, peers: Sequence[str], executors: Sequence[str], stack: ExitStack) -> dict[str, Any]:
    """Name -> what makes the contender; all but the plain loop."""
    found: dict[str, Any] = {goals.OURS: lambda: Ours(made)}
    found |= {f"freehold {executor}": lambda executor=executor: Ours(made, executor) for executor in executors}
    if (hand := by_hand(made)) is not None:
        found[goals.HAND] = lambda: hand
    for name in peers:
        if PEERS[name].does(made):
            found[name] = lambda name=name: stack.enter_context(working(PEERS[name], made))
    return found


def agreed(contender: Contender, plain: Contender, made: Ready) -> float:
    """How far apart the last round's updates are; raises Disagrees where that is too far."""
    reference = plain.outcome()
    off, most = apart(contender.outcome(), reference), allowed(reference, made.task.init)
    if not off <= most and not (off <= KINK and isinstance(contender, Ours) and in_double(contender, made) <= EXACT):
        raise Disagrees(f"its update is {off:.1e} of the plain loop's away from it, and {most:.1e} is allowed")
    return off


def in_double(ours: Ours, made: Ready) -> float:
    """How far apart ours and the plain loop are after a round in float64, where no example is on the other side of a kink."""
    double = ready(made.workload, str(made.device), torch.float64)
    again, plain = Ours(double, ours.executor), Plain(double)
    again.round(0)
    plain.round(0)
    return apart(again.outcome(), plain.outcome())
