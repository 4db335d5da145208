"""What is tuned of an algorithm, and the trials: its own defaults first, then points spread evenly over the ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from freehold.core import AlgorithmEntry, Hyperparameter
from freehold.drawing import digest_seed
from freehold.errors import UsageError
from freehold.plan import Scalar
from freehold.report import Searched

RATE, STRENGTH, COUNT = 30.0, 100.0, 4.0
"""How far a rate, the weight of a penalty and a count may go from the default, up and down, as factors."""

_DIGITS = 4
"""Significant digits of a value that is tried: a plan is read by people."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One hyper-parameter and where it is looked for."""

    name: str
    low: float
    high: float
    log: bool
    whole: bool

    def at(self, share: float) -> int | float:
        """The value at a share in [0, 1] of the range, on its scale."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return float(f"{min(max(value, self.low), self.high):.{_DIGITS}g}")

    def told(self) -> Searched:
        """For a report."""
        return Searched(name=self.name, low=self.low, high=self.high, scale="log" if self.log else "linear")


def space_of(entry: AlgorithmEntry, settings: Mapping[str, Scalar], held: Sequence[str] = ()) -> tuple[Dimension, ...]:
    """Where each of an algorithm's numbers is looked for, around what `settings` say; what is `held` stays as it is.

    Switches and choices by name are no numbers. An optional rate, whose default follows the learning rate, is looked for
    around that one.
    """
    known = entry.hyperparameters
    rate = settings.get("lr", known["lr"].default if "lr" in known else None)
    found = []
    for name, each in known.items():
        middle = settings.get(name, each.default)
        if middle is None and not each.required:
            middle = rate
        if name not in held and each.kind in (int, float) and isinstance(middle, int | float) and not isinstance(middle, bool):
            dimension = _dimension(each, float(middle))
            found += [] if dimension is None else [dimension]
    return tuple(found)


def tried(
    algorithm: str, space: Sequence[Dimension], settings: Mapping[str, Scalar], *, trials: int, seed: int
) -> tuple[dict[str, Scalar], ...]:
    """The hyper-parameters of each trial: `settings` as they are, then `trials - 1` points of a scrambled Halton sequence."""
    if trials < 1:
        raise UsageError(f"{trials} trials were asked for.", hint="Ask for at least one; the first is the defaults.")
    if not space:
        raise UsageError(
            f"{algorithm} has no number to tune, or all of them are held.", hint="Choose another algorithm, or set less of it."
        )
    first = dict(settings)
    if trials == 1:
        return (first,)
    from scipy.stats import qmc  # half a second, which no other command has to wait for

    drawn = qmc.Halton(len(space), scramble=True, seed=np.random.default_rng(digest_seed("tune", algorithm, seed)))
    points = drawn.random(trials - 1)
    return (first, *({**first, **{d.name: d.at(float(u)) for d, u in zip(space, point, strict=True)}} for point in points))


def _dimension(each: Hyperparameter, middle: float) -> Dimension | None:
    low, high = (each.between.low, each.between.high) if each.between else (-math.inf, math.inf)
    if each.kind is int:
        least, most = max(math.ceil(middle / COUNT), low, 1), min(math.floor(middle * COUNT), high)
        return Dimension(name=each.name, low=least, high=most, log=True, whole=True) if least < most else None
    if math.isfinite(low) and math.isfinite(high):
        return Dimension(name=each.name, low=low, high=high, log=False, whole=False)
    if low < 0 and middle <= 0:
        return None  # nothing says how large it may be
    factor = RATE if each.between and each.between.above else STRENGTH
    middle = middle if middle > 0 else 1.0
    least, most = max(middle / factor, low), min(middle * factor, high)
    return Dimension(name=each.name, low=float(f"{least:.4g}"), high=float(f"{most:.4g}"), log=True, whole=False)
