"""The ε of what leaves: Gaussian noise, sampled or not, composed by privacy loss distributions (Koskela et al. 2020).

A promise is (ε, δ)-differential privacy by zeroing out, at both units: in one neighbor the gradient of one training record
(`record`), or a node's whole contribution (`client`), counts as zeros. So it does not hide how many records a node has, or that
it takes part. Who replaces a record by another is two such steps away. dp-accounting composes, and calls the same
"add or remove one"; it is imported when it is first needed, since that takes a second.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from freehold.errors import PlanError
from freehold.plan import Plan, runs_of

if TYPE_CHECKING:
    from dp_accounting import DpEvent, PrivacyAccountant

LEAST_LATTICE = 16.0
"""Discrete noise whose standard deviation is less than so many steps of its grid is not accounted for."""

MOST_STEPS = 1 << 28
"""Of the grid to which a trainer rounds each clipped gradient, in `max_norm`."""

WIDEST = 2**40
"""Steps of a grid that noise may be wide: float64 holds every such number, and sums of them, exactly."""

LEAST_SPREAD = 0.5
"""Sampled noise that is narrower promises next to nothing, and its distribution takes minutes: Rényi's bound has to do."""

MOST_EXACT = 100.0
"""A larger ε promises nothing, and its distribution takes gigabytes: Rényi's bound has to do."""

MOST_RELEASES = 10**6
"""Of sampled noise, beyond which a distribution takes minutes and gigabytes too."""

MOST_NOISE = 1e4
"""The largest noise multiplier that is looked for."""

_SMOOTHING = 2.0
_SLACK = 1e-9
_FAR = 1e3
_WIDE, _RARE = 1e100, 1e-12
"""Wider noise, and what is drawn less often, cost no less than these do, whose squares are numbers."""
_NARROW = 0.02
"""Less noise than this, beside what is sampled, promises nothing: all of it is accounted for as if it were not sampled."""


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

        A discrete Gaussian of variance s² (Canonne, Kamath and Steinke 2020, arXiv:2004.00010) is what is left when noise x of
        variance s² - 4 on the real numbers is rounded at random, to z with a probability in proportion to
        exp(-(z - x)² / 8): `∫ exp(-x² / (2 s² - 8)) exp(-(z - x)² / 8) dx` is in proportion to exp(-z² / (2 s²)) (Peikert 2010,
        theorem 3.1). Only what `exp(-(z - x)² / 8)` sums to over z depends on x, by Poisson's summation by a factor in
        1 ± 2.1 exp(-8 π²), and 2.1 exp(-8 π²) < 1.1e-34. Rounding so moves with any whole number that is added to x, so it is
        post-processing, also of what was sampled. For d numbers and T releases both δ and exp(ε) change by a factor of at most
        exp(5e-34 d T): `_SLACK` covers d T up to 1e24.
        """
        if self.lattice is None:
            return self.noise_multiplier
        return self.noise_multiplier * math.sqrt(1 - (_SMOOTHING / self.lattice) ** 2)

    def times(self, count: int) -> Mechanism:
        """The same noise, so many times."""
        return msgspec.structs.replace(self, count=count)


def mechanism_of(plan: Plan, examples: int) -> Mechanism | None:
    """What one round of one run does to a node with so many training examples; None where the plan promises nothing, or adds
    noise that is narrower than `LEAST_LATTICE` steps of its grid.

    Record level: each step draws every example in secret, on the node, so sampling counts. Client level: the coordinator draws
    the cohort and knows whom it asked, so it does not.
    """
    promised = plan.privacy
    if promised.noise_multiplier is None:
        return None
    lattice = promised.noise_multiplier * _steps_of_norm(plan)
    if lattice < LEAST_LATTICE:
        return None
    if promised.unit == "client":
        return Mechanism(noise_multiplier=promised.noise_multiplier, lattice=lattice)
    if examples < 1:
        raise PlanError("Record-level privacy was asked of a node without training examples.", hint="Leave this node out.")
    training = plan.training
    passes = -(-examples // training.batch_size)
    drawn = max(float(training.batch_size), promised.expected_batch or 0.0)
    return Mechanism(
        noise_multiplier=promised.noise_multiplier,
        sampling=min(1.0, drawn / examples),
        count=training.steps or (training.epochs or 0) * passes,
        lattice=lattice,
    )


def steps_of_norm(noise_multiplier: float) -> float:
    """How many steps of the trainer's grid make `max_norm`, where record-level noise is this wide: a power of two."""
    return math.ldexp(1.0, min(MOST_STEPS.bit_length() - 1, math.floor(math.log2(WIDEST) - math.log2(noise_multiplier))))


def _steps_of_norm(plan: Plan) -> float:
    promised = plan.privacy
    assert promised.noise_multiplier is not None and promised.max_norm is not None, "the plan's own checks"
    if promised.unit == "record":
        return steps_of_norm(promised.noise_multiplier)
    return promised.max_norm * 2.0**plan.contribution.scale


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
    """The same by Rényi differential privacy (Mironov 2017): another upper bound, nearly always the larger one."""
    from dp_accounting.rdp import RdpAccountant

    grouped = _grouped(mechanisms)
    with _quiet():
        return _composed(RdpAccountant(), grouped, delta) if grouped else 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """dp-accounting warns of each order that it leaves out, which only makes its bound larger."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def noise_for(target: float, cost: Callable[[float], float], bound: Callable[[float], float]) -> float:
    """A noise multiplier whose `cost`, an ε, is at most `target`, and more than 98 % of it.

    `cost` falls with the noise and is slow; `bound` falls too, is fast, and mostly a little larger. Raises PlanError where so
    much noise would be needed that nothing is learned.
    """
    if not target > 0:
        raise PlanError(f"ε = {target:g} was asked for.", hint="Give a number above 0.")
    low, high = 0.05, 0.1
    while bound(high) > target:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise PlanError(
                f"No noise multiplier up to {MOST_NOISE:g} keeps ε at {target:g}.",
                hint="Ask for a larger ε, or for fewer rounds.",
            )
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bound(middle) <= target else (middle, high)
    while (found := cost(high)) > target:
        high *= max(found / target, 1.02)
    least = 0.0
    for _ in range(8):
        if found > 0.98 * target or high <= 0.1:
            break
        tried = max(high * (found / (0.995 * target)), (least + high) / 2)
        reached = cost(tried)
        if reached > target:
            least = tried
        else:
            high, found = tried, reached
    return high


def _grouped(mechanisms: Iterable[Mechanism]) -> tuple[tuple[float, float, int], ...]:
    """(spread, sampling, how often) of each kind of noise, in an order of its own."""
    counts: Counter[tuple[float, float]] = Counter()
    for each in mechanisms:
        counts[min(each.spread, _WIDE), max(each.sampling, _RARE)] += each.count
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
    narrowest = min(spread for spread, _, _ in joined)
    if narrowest < _NARROW:
        return gaussian_epsilon(_joined(grouped), delta)
    from dp_accounting.rdp import RdpAccountant

    with _quiet():
        bound = _composed(RdpAccountant(), joined, delta)
    releases = sum(count for _, sampling, count in rest)
    if narrowest < LEAST_SPREAD or not bound <= MOST_EXACT or releases > MOST_RELEASES:
        return math.inf if math.isnan(bound) else bound
    from dp_accounting.pld import PLDAccountant

    return _composed(PLDAccountant(), joined, delta) + _SLACK


def _joined(grouped: Iterable[tuple[float, float, int]]) -> float:
    """How far apart two Gaussians of standard deviation 1 are that are told apart as well as by all of these, unsampled."""
    return math.hypot(*(math.sqrt(count) / spread for spread, _, count in grouped))


def gaussian_epsilon(shift: float, delta: float) -> float:
    """ε at δ of N(shift, 1) against N(0, 1), never too small: the analytic Gaussian mechanism (Balle, Wang 2018, theorem 8)."""
    if shift > _FAR:  # zero-concentrated differential privacy (Bun and Steinke 2016, proposition 1.3)
        rho = shift * shift / 2
        return rho + 2 * math.sqrt(-rho * math.log(delta))
    low, high = 0.0, shift**2 / 2 + shift * math.sqrt(-2 * math.log(delta)) + _SLACK
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
