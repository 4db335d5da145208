"""Rounds of all contenders in turn, and what their times say: medians, ratios with their spread, shares of the peak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.simulation.contender import Contender, timed

RESAMPLES = 2000
WIDTH = 2048
"""Of the matrices whose product is the peak."""


class Ratio(NamedTuple):
    """How many times as long as the other one takes."""

    ratio: float
    low: float
    """The 95 % interval of the bootstrap; this bound is the one that counts."""
    high: float


def race(contenders: Mapping[str, Contender], rounds: int, start: int) -> dict[str, list[float]]:
    """Name -> seconds of each round. All run round `start`, then all the next; who is first changes."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(contenders[name].round(start + turn))
    return seconds


def ratio(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> Ratio:
    """The median of theirs over that of ours; both are resampled by the same turns, since what disturbs one disturbs all."""
    a, b = np.asarray(theirs), np.asarray(ours)
    turns = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.percentile(np.median(a[turns], axis=1) / np.median(b[turns], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


class Gemm:
    """The peak, as a contender: one product of two large float32 matrices."""

    def __init__(self, device: torch.device, width: int = WIDTH) -> None:
        """Both are made once."""
        self.device, self.width = device, width
        self.a, self.b = torch.randn(width, width, device=device), torch.randn(width, width, device=device)
        self.out = torch.empty_like(self.a)

    def round(self, index: int) -> float:
        """One product."""
        return timed(self.device, lambda: torch.mm(self.a, self.b, out=self.out))

    def outcome(self) -> Mapping[str, torch.Tensor]:
        """None that matters."""
        return {}

    def close(self) -> None:
        """Nothing is held."""

    def flop_per_s(self, seconds: Sequence[float]) -> float:
        """The best of some rounds: what this core can do when nobody disturbs it."""
        return 2 * self.width**3 / min(seconds)


def summary(seconds: Mapping[str, Sequence[float]], ours: str, flop: int, peak: float) -> dict[str, dict[str, object]]:
    """Name -> its median, quartiles, share of the peak, and how many times ours it takes."""
    found: dict[str, dict[str, object]] = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        quartiles = np.percentile(times, [25, 75])
        found[name] = {
            "median_s": median,
            "quartiles_s": [float(q) for q in quartiles],
            "rounds": len(times),
            "share_of_gemm": flop / median / peak,
        }
        if ours in seconds and name != ours:
            found[name]["times_ours"] = ratio(times, seconds[ours])._asdict()
    return found
