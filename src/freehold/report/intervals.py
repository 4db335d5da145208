"""Gain, loss, or cannot tell: intervals of paired differences. Positive differences are improvements.

Repeated splits overlap, so the plain t interval is far too narrow. Nadeau & Bengio, "Inference for the generalization
error", Machine Learning 52, 2003: the variance of the mean of R differences is taken as

    s^2 * (1/R + n_test/n_train)        with R - 1 degrees of freedom.

Stratified splits hold each client's label mix fixed, so s^2 does not see that the data at hand might have had another
mix. The variance is therefore never taken below that of a mean over the examples that were tested at all.

With one fixed test set the seeds show training randomness only. The variance is then `s^2/R` plus that of the test
examples (Welch-Satterthwaite degrees of freedom), and if the latter is not known the answer is "cannot tell". It is
a statement about models trained on this very training set.

Fewer than three seeds: "cannot tell", and no interval.

A report judges many differences, and at 95 % each one in twenty would miss by chance. `judged` therefore holds the share of
false ones among all gains and losses of a report at 10 % (Benjamini & Hochberg, J. R. Statist. Soc. B 57, 1995), so that a
report in which nothing differs has any gain or loss in at most 10 of 100 cases. Its intervals are widened to the level of that
choice (Benjamini & Yekutieli, J. Am. Statist. Assoc. 100, 2005), so that a gain or a loss is again what has its whole interval
on one side of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Verdict = Literal["gain", "loss", "cannot tell"]

LEVEL = 0.95
"""Of an interval that stands alone; those of a report are wider."""

FALSE_SHARE = 0.10
"""The most that is expected to be false among the gains and losses of a report."""

FEWEST_SEEDS = 3


class Spread(NamedTuple):
    """How sure a mean difference is."""

    error: float
    """Standard error; above 0."""
    freedom: float
    """Degrees of freedom of its estimate."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How much better than the baseline, in units of the metric, with its interval; None where nothing can be said.

    `reason` says in plain words why there is no interval; "" if there is one. `spread` is there where the interval is.
    """

    difference: float | None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "cannot tell"
    reason: str = ""
    spread: Spread | None = None

    @property
    def p(self) -> float | None:
        """How likely a difference at least as large is where there is none; None without an interval."""
        if self.difference is None or self.spread is None:
            return None
        return 2 * float(stdtr(self.spread.freedom, -abs(self.difference) / self.spread.error))

    def at(self, level: float) -> Paired:
        """The same with its interval at another level, and the verdict that follows."""
        if self.difference is None or self.spread is None:
            return self
        half = -float(stdtrit(self.spread.freedom, (1 - level) / 2)) * self.spread.error
        low, high = self.difference - half, self.difference + half
        return replace(self, low=low, high=high, verdict=verdict(low, high))


def judged(differences: Sequence[Paired]) -> tuple[Paired, ...]:
    """The same differences, all of a report, judged together; a single one is as it was."""
    level = common_level([paired.p for paired in differences if paired.p is not None])
    return tuple(paired.at(level) for paired in differences)


def common_level(p: Sequence[float]) -> float:
    """The level, at least `LEVEL`, at which exactly the intervals that Benjamini and Hochberg select leave zero out."""
    if not p:
        return LEVEL
    allowed = np.minimum(1 - LEVEL, FALSE_SHARE * np.arange(1, len(p) + 1) / len(p))
    passed = np.flatnonzero(np.sort(p) <= allowed)
    return 1 - float(allowed[passed[-1] if passed.size else 0])


def verdict(low: float | None, high: float | None) -> Verdict:
    """ "gain" if the whole interval is above zero, "loss" if it is below, else (or without one) "cannot tell"."""
    if low is not None and low > 0:
        return "gain"
    if high is not None and high < 0:
        return "loss"
    return "cannot tell"


def repeated_splits(differences: Sequence[float], *, ratio: float, least_variance: float = 0.0) -> Paired:
    """The corrected resampled t interval of `differences`, one per split; those that are not finite are left out.

    `ratio`: n_test / n_train. `least_variance`: the variance of the mean difference due to the finite number of
    examples, a lower bound (see `example_variance`); 0 if it is not known.
    """
    values, early = _usable(differences)
    if early is not None:
        return early
    variance = max(float(np.var(values, ddof=1)) * (1 / len(values) + ratio), least_variance)
    if variance == 0.0:
        return Paired(difference=float(np.mean(values)), reason="all splits gave the very same difference")
    return _interval(values, variance, len(values) - 1)


def fixed_split(differences: Sequence[float], *, variance: float | None, examples: int) -> Paired:
    """The interval of `differences`, one per seed, all on the same `examples` test examples.

    `variance`: that of the mean difference due to the finite number of test examples; None: not known.
    """
    values, early = _usable(differences)
    if early is not None:
        return early
    if variance is None or examples < 2:
        return Paired(
            difference=float(np.mean(values)),
            reason="every seed has the same test set, and how much its examples vary was not measured",
        )
    training = float(np.var(values, ddof=1)) / len(values)
    if training + variance == 0.0:
        return Paired(difference=float(np.mean(values)), reason="all seeds gave the very same difference")
    freedom = (training + variance) ** 2 / (training**2 / (len(values) - 1) + variance**2 / (examples - 1))
    return _interval(values, training + variance, freedom)


def example_variance(first: float, second: float, *, per_example: float | None, examples: float, binary: bool) -> float | None:
    """The variance of a mean paired difference over `examples` examples, or None if it cannot be known.

    `per_example`: the variance of one example's paired difference, if it was measured. If not, and the metric is a share
    of right answers (`binary`), the largest that the two shares `first` and `second` allow is taken, as if the two
    models never erred on the same example; and no share is taken as certain: one success and one failure are added to
    each (Agresti & Caffo 2000). Measured binary differences get half a count in each of the four cells (Agresti & Min
    2005), so that two models' agreement on a few examples is not taken for certainty.
    """
    if examples <= 0:
        return None
    if per_example is None:
        if not binary:
            return None
        first, second = ((share * examples + 1) / (examples + 2) for share in (first, second))
        disagreement = min(first + second, 2 - first - second)
        return (disagreement - (first - second) ** 2) / (examples + 2)
    if not binary:
        return per_example / examples
    difference = first - second
    disagreeing = max((per_example + difference**2) * examples, abs(difference) * examples) + 1
    return max(disagreeing - (difference * examples) ** 2 / (examples + 2), 0.0) / (examples + 2) ** 2


def examples_tested(*, examples: int, test: int, splits: int) -> float:
    """How many of `examples` are expected in at least one of `splits` random test sets of `test` each."""
    if examples <= 0:
        return 0.0
    return examples * (1 - (1 - min(test / examples, 1.0)) ** splits)


def _usable(differences: Sequence[float]) -> tuple[npt.NDArray[np.float64], Paired | None]:
    values = np.asarray([value for value in differences if math.isfinite(value)], dtype=np.float64)
    if len(values) == 0:
        return values, Paired(difference=None, reason="there is nothing to compare")
    if len(values) < FEWEST_SEEDS:
        seeds = "1 seed is" if len(values) == 1 else f"{len(values)} seeds are"
        return values, Paired(difference=float(np.mean(values)), reason=f"{seeds} too few for an interval")
    return values, None


def _interval(values: npt.NDArray[np.float64], variance: float, freedom: float) -> Paired:
    return Paired(difference=float(np.mean(values)), spread=Spread(math.sqrt(variance), freedom)).at(LEVEL)
