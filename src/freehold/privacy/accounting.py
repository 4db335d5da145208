"""The ε of what leaves: Gaussian noise, sampled or not, composed by privacy loss distributions (Koskela et al. 2020).

A promise is (ε, δ)-differential privacy where neighbors differ by one record (`record`), or by a contribution in whose place
there are zeros (`client`). dp-accounting composes; it is imported when it is first needed, since that takes a second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from freehold.errors import PlanError
from freehold.plan import Plan, runs_of

if TYPE_CHECKING:
    from dp_accounting import DpEvent, PrivacyAccountant

LEAST_LATTICE = 16.0
"""Discrete noise whose standard deviation is less than so many steps of its grid is not accounted for."""

_SMOOTHING = 2.0
_SLACK = 1e-9
_FAR = 1e3
_NARROW = 0.3
"""Less noise than this, sampled, is accounted for as if it were not: its ε is in the tens, and slow to compute."""


class Mechanism(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gaussian noise that was added `count` times."""

    noise_multiplier: float
    """Standard deviation, in units of what one record (or client) can add: the L2 norm it is clipped to."""
    sampling: float = 1.0
    """The probability with which a record takes part, drawn in secret for each by itself (Poisson); 1: always."""
    count: int = 1
    lattice: float | None = None
    """Of discrete noise: its standard deviation in steps of the grid; None for noise on the real numbers."""

    def __post_init__(self) -> None:
        if not (0 < self.noise_multiplier < math.inf and 0 < self.sampling <= 1 and self.count >= 0):
            raise ValueError(f"no such mechanism: {self}")
        if self.lattice is not None and not LEAST_LATTICE <= self.lattice < math.inf:
            raise ValueError(f"the grid is too coarse: {self}")

    @property
    def spread(self) -> float:
        """The noise multiplier of noise on the real numbers that promises no more than this does.

        A discrete Gaussian of variance s² (Canonne, Kamath and Steinke 2020, arXiv:2004.00010) is what is left when noise of
        variance s² - 4 on the real numbers is rounded at random to the grid by a discrete Gaussian of variance 4, up to a
        factor of 1 ± exp(-8 π²) a coordinate (Poisson's summation, as there). Rounding costs no privacy; `_SLACK` covers
        the factor.
        """
        if self.lattice is None:
            return self.noise_multiplier
        return self.noise_multiplier * math.sqrt(1 - (_SMOOTHING / self.lattice) ** 2)

    def times(self, count: int) -> Mechanism:
        """The same noise, so many times."""
        return msgspec.structs.replace(self, count=count)


def mechanism_of(plan: Plan, examples: int) -> Mechanism | None:
    """What one round of one run does to a node with so many training examples; None where the plan promises nothing.

    Record level: each step draws every example in secret, on the node, so sampling counts. Client level: the coordinator draws
    the cohort and knows whom it asked, so it does not.
    """
    promised = plan.privacy
    if promised.noise_multiplier is None:
        return None
    if promised.unit == "client":
        return Mechanism(noise_multiplier=promised.noise_multiplier)
    if examples < 1:
        raise PlanError("Record-level privacy was asked of a node without training examples.", hint="Leave this node out.")
    training = plan.training
    passes = -(-examples // training.batch_size)
    drawn = max(float(training.batch_size), promised.expected_batch or 0.0)
    return Mechanism(
        noise_multiplier=promised.noise_multiplier,
        sampling=min(1.0, drawn / examples),
        count=training.steps or (training.epochs or 0) * passes,
    )


def epsilon_of(plan: Plan, rounds: int, examples: int, *, runs: int = 1, delta: float | None = None) -> float:
    """ε of so many rounds in each of so many runs of a plan, for a node with so many training examples; inf without noise.

    `delta`: the plan's own if not given. It grows with `rounds`.
    """
    check_rounds(rounds)
    if not rounds or not runs:
        return 0.0
    found = mechanism_of(plan, examples)
    if found is None:
        return math.inf
    return epsilon([found.times(found.count * rounds * runs)], plan.privacy.delta if delta is None else delta)


def planned_epsilon(plan: Plan, examples: int, *, delta: float | None = None) -> tuple[float, float]:
    """(ε of the plan's algorithm alone, ε of all its runs together: companions and repeats touch the same data)."""
    rounds = plan.training.rounds
    one = epsilon_of(plan, rounds, examples, delta=delta)
    return one, epsilon_of(plan, rounds, examples, runs=len(runs_of(plan)), delta=delta)


def check_rounds(rounds: int) -> None:
    """Raise ValueError for what is no number of rounds."""
    if rounds < 0:
        raise ValueError(f"{rounds} rounds")


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """ε of all of them together, by privacy loss distributions."""
    return _epsilon(_grouped(mechanisms), delta)


def epsilon_by_rdp(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """The same by Rényi differential privacy (Mironov 2017): an upper bound that is never below `epsilon`."""
    from dp_accounting.rdp import RdpAccountant

    grouped = _grouped(mechanisms)
    return _composed(RdpAccountant(), grouped, delta) if grouped else 0.0


def _grouped(mechanisms: Iterable[Mechanism]) -> tuple[tuple[float, float, int], ...]:
    """(spread, sampling, how often) of each kind of noise, in an order of its own."""
    counts: Counter[tuple[float, float]] = Counter()
    for each in mechanisms:
        counts[each.spread, each.sampling] += each.count
    return tuple(sorted((*kind, count) for kind, count in counts.items() if count))


@lru_cache(maxsize=1024)
def _epsilon(grouped: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}")
    if not grouped:
        return 0.0
    # Gaussian noise that is not sampled composes to Gaussian noise: one distribution instead of many.
    whole = _joined(each for each in grouped if each[1] == 1)
    rest = tuple(each for each in grouped if each[1] < 1)
    if not rest:
        return gaussian_epsilon(whole, delta)
    joined = ((1 / whole, 1.0, 1), *rest) if whole else rest
    if any(spread < _NARROW for spread, _, _ in joined):
        return gaussian_epsilon(_joined(grouped), delta)
    from dp_accounting.pld import PLDAccountant

    return _composed(PLDAccountant(), joined, delta) + _SLACK


def _joined(grouped: Iterable[tuple[float, float, int]]) -> float:
    """How far apart two Gaussians of standard deviation 1 are that are told apart as well as by all of these, unsampled."""
    return math.hypot(*(math.sqrt(count) / spread for spread, _, count in grouped))


def gaussian_epsilon(shift: float, delta: float) -> float:
    """ε at δ of N(shift, 1) against N(0, 1), never too small: the analytic Gaussian mechanism (Balle, Wang 2018, theorem 8)."""
    if shift > _FAR:  # zero-concentrated differential privacy (Bun and Steinke 2016, proposition 1.3)
        rho = shift * shift / 2
        return rho + 2 * math.sqrt(rho * math.log(1 / delta))
    low, high = 0.0, shift**2 / 2 + shift * math.sqrt(2 * math.log(1 / delta)) + _SLACK
    while high - low > _SLACK * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if _excess(shift, middle) > delta else (low, middle)
    return high * (1 + _SLACK) + _SLACK


def _excess(shift: float, epsilon: float) -> float:
    """δ of the same at ε: Φ(a) - exp(ε) Φ(b)."""
    a, b = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
    return math.erfc(-a / math.sqrt(2)) / 2 - math.exp(epsilon + _least_log_tail(b))


def _least_log_tail(x: float) -> float:
    """log Φ(x) for x ≤ 0; a little less where it underflows (Gordon 1941)."""
    if x > -37:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -(x**2) / 2 + math.log(-x / (1 + x**2) / math.sqrt(2 * math.pi))


def _composed(accountant: PrivacyAccountant, grouped: Iterable[tuple[float, float, int]], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for spread, sampling, count in grouped:
        event: DpEvent = GaussianDpEvent(spread)
        accountant.compose(event if sampling == 1 else PoissonSampledDpEvent(sampling, event), count)
    return float(accountant.get_epsilon(delta))
