"""What the simulator is to reach: floors and goals, and which of them a run reached. The lower bound of a ratio counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

OURS = "freehold"
PLAIN, HAND, FLOWER, PFL, OPACUS, GHOST = "plain", "by hand", "flwr", "pfl", "opacus", "opacus ghost"
GEMM = "% of GEMM"


class Goal(NamedTuple):
    """`floor` None: to be measured, without a bound."""

    floor: float | None
    goal: float | None = None


GOALS: Mapping[str, Mapping[str, Goal]] = {
    "W1a": {FLOWER: Goal(25, 40), PFL: Goal(10, 14), PLAIN: Goal(5, 8), HAND: Goal(0.9)},
    "W1b": {FLOWER: Goal(12, 18), PFL: Goal(3, 5), PLAIN: Goal(2, 3.5), HAND: Goal(0.9), GEMM: Goal(30, 48)},
    "W1b-E5": {FLOWER: Goal(None, 40), PFL: Goal(6, 9), PLAIN: Goal(4, 8), HAND: Goal(0.9), GEMM: Goal(60, 95)},
    "W1b-ditto": {PLAIN: Goal(None)},
    "W1b-fedrep": {PLAIN: Goal(None)},
    "W2a": {FLOWER: Goal(1.1, 1.2), PFL: Goal(1.0), PLAIN: Goal(1.0), GEMM: Goal(50, 56)},
    "W2b": {FLOWER: Goal(None, 1.5), PFL: Goal(1.3, 1.4), PLAIN: Goal(1.3, 1.5), GEMM: Goal(55, 62)},
    "W3a": {FLOWER: Goal(None, 1.1), PFL: Goal(1.0), PLAIN: Goal(1.0)},
    "W3b": {FLOWER: Goal(None, 1.1), PFL: Goal(1.0), PLAIN: Goal(1.0)},
    "W4": {FLOWER: Goal(None, 20), PFL: Goal(None, 7), PLAIN: Goal(5, 7), HAND: Goal(0.9)},
    "DP": {OPACUS: Goal(8, 12), GHOST: Goal(1.0), PLAIN: Goal(None)},
}
"""Workload -> against whom -> how many times ours they have to take (of GEMM: the share that ours has to reach, in %)."""

FIRST_ROUND_S = Goal(3.0)
PEAK_MB = Goal(500.0)
TWO_CORES = Goal(1.8)


class Verdict(NamedTuple):
    """One line of the table."""

    work: str
    against: str
    ratio: float | None
    low: float | None
    high: float | None
    floor: float | None
    goal: float | None
    said: str


def verdicts(works: Mapping[str, Mapping[str, Any]]) -> Iterator[Verdict]:
    """Of each workload that was run; where there is nothing to compare, the reason."""
    for work, found in works.items():
        rows = found["contenders"]
        for against, (floor, goal) in GOALS.get(work, {}).items():
            if against == GEMM:
                share = None if found["on_gpu"] or OURS not in rows else 100 * rows[OURS]["share_of_gemm"]
                yield Verdict(work, against, share, share, share, floor, goal, judged(share, floor, goal))
            elif against in found["missing"] or OURS in found["missing"]:
                yield Verdict(work, against, None, None, None, floor, goal, "not timed")
            elif against in rows:
                told = rows[against]["times_ours"]
                said = judged(told["low"], floor, goal)
                yield Verdict(work, against, told["ratio"], told["low"], told["high"], floor, goal, said)


def others(start: Mapping[str, Any], growth: Mapping[str, Any]) -> Iterator[Verdict]:
    """Of the first round, memory and two processes; of the first two less is better, and the bound is the most it may be."""
    first, peak = start[OURS]["first_round_s"], start[OURS]["peak_mb"]
    for name, found, (most, _) in (("first round, s", first, FIRST_ROUND_S), ("peak, MB", peak, PEAK_MB)):
        yield Verdict("W1b", name, found, found, found, most, None, "reached" if most is None or found <= most else "missed")
    two = growth["processes"]
    figures = (two.get("speedup"), two.get("low"), two.get("high"))
    yield Verdict(two.get("work", ""), "one process", *figures, *TWO_CORES, judged(two.get("low"), *TWO_CORES))


def judged(low: float | None, floor: float | None, goal: float | None) -> str:
    """ "reached" is the floor; "goal" the goal too."""
    if low is None:
        return "not timed"
    if goal is not None and low >= goal:
        return "goal reached"
    if floor is None:
        return "measured"
    return "reached" if low >= floor else "missed"
