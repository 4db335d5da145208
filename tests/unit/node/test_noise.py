"""The noise: exactly the distribution that is promised, by arithmetic; and drawn from it, by chi-square with fixed bits."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from freehold.node import noise
from freehold.node.noise import PIECE, DiscreteGaussian, SystemStream, Table, levels, table


class Fixed:
    """The bits of a seed."""

    def __init__(self, seed: int) -> None:
        self._bits = random.Random(seed)

    def fill(self, into: NDArray[np.uint16]) -> None:
        into[:] = np.frombuffer(self._bits.randbytes(into.nbytes), np.uint16)

    def word(self) -> int:
        return self._bits.getrandbits(64)


class Told:
    """Bits that are told: cells, their first sixteen bits, then the further words."""

    def __init__(self, cells: list[int], low: list[int], words: list[int]) -> None:
        self._shorts, self.words = np.array(cells + low, np.uint16), words

    def fill(self, into: NDArray[np.uint16]) -> None:
        into[:] = self._shorts

    def word(self) -> int:
        return self.words.pop(0)


def drawn(variance: Fraction, count: int, seed: int = 1) -> NDArray[np.int64]:
    of, out = DiscreteGaussian(variance, Fixed(seed)), np.zeros(count)
    for begin in range(0, count, PIECE):
        of.add_to(out[begin : begin + PIECE])
    return out.astype(np.int64)


def units(of: Table) -> dict[int, int]:
    """What a table says, in 2**-96: the sum over its cells of what leads to a number."""
    found: dict[int, int] = {}
    for cell, (first, rest, step) in enumerate(zip(of.threshold, of.further, of.step, strict=True)):
        own = (int(first) << 64) + int(rest) if step else 1 << 80
        number = cell - 2**15
        found[number] = found.get(number, 0) + own
        found[number + int(step)] = found.get(number + int(step), 0) + (1 << 80) - own
    return found


def exactly(variance: Fraction, numbers: list[int]) -> list[Decimal]:
    """exp(-x^2 / 2 variance) / Z, each by itself."""
    with localcontext(prec=50):
        two = 2 * Decimal(variance.numerator) / Decimal(variance.denominator)
        reach = range(-int(16 * math.sqrt(variance)) - 2, int(16 * math.sqrt(variance)) + 3)
        total = sum((-Decimal(x * x) / two).exp() for x in reach)
        return [(-Decimal(x * x) / two).exp() / total for x in numbers]


@pytest.mark.parametrize("variance", [Fraction(1, 9), Fraction(1), Fraction(1369, 100), Fraction(100**2)])
def test_a_table_is_the_discrete_gaussian_to_its_last_unit(variance: Fraction) -> None:
    found = units(table(variance))
    assert sum(found.values()) == 2**96 and min(found.values()) >= 0
    numbers = [x for x in range(-(2**15), 2**15) if abs(x) <= 14 * math.sqrt(variance) + 1]
    with localcontext(prec=50):
        wrong = [abs(Decimal(found.get(x, 0)) - p * 2**96) for x, p in zip(numbers, exactly(variance, numbers), strict=True)]
        assert sum(wrong) / 2 < 2**16, "2**-80 in total variation"
        assert sum(found.values()) == sum(found.get(x, 0) for x in numbers)


def test_equal_bits_are_decided_by_sixty_four_more() -> None:
    of = table(Fraction(25))
    cell = next(i for i in range(2**15, 2**16) if of.step[i])
    first, rest, step = int(of.threshold[cell]), int(of.further[cell]), int(of.step[cell])
    assert 0 < rest < 2**64 - 1 and 0 < first < 2**16 - 1
    stream = Told([cell] * 4, [first, first, first - 1, first + 1], [rest - 1, rest])
    numbers = np.zeros(4)
    DiscreteGaussian(Fraction(25), stream).add_to(numbers)
    assert (numbers - (cell - 2**15)).tolist() == [0, step, 0, step] and not stream.words


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.7, 40.0])
def test_what_is_drawn_is_distributed_so(sigma: float) -> None:
    variance = Fraction(sigma) ** 2
    numbers = drawn(variance, 200_000)
    reach = int(4 * sigma) + 1
    values = list(range(-reach, reach + 1))
    expected = np.array([float(p) for p in exactly(variance, values)]) * len(numbers)
    seen = np.array([(numbers == x).sum() for x in values])
    rest = len(numbers) - expected.sum()
    assert chi_square([*seen, len(numbers) - seen.sum()], [*expected, rest]) > 1e-3


def test_what_wider_noise_is_made_of_sums_to_the_discrete_gaussian() -> None:
    """The convolution, number by number, for parts as `levels` cuts them."""
    variance = Fraction(3000) ** 2
    (one, first), (k, second) = levels(variance)
    assert one == 1 and first + k**2 * second == variance and first == (2 * k) ** 2
    reach = range(-60, 61)
    fine = np.array([float(p) for p in exactly(first, list(reach))])
    wide = math.sqrt(second)
    for z in (0, 1, 2, 777, 6001):
        total = 0.0
        for x, p in zip(reach, fine, strict=True):
            if (z - x) % k == 0:
                total += p * math.exp(-(((z - x) // k) ** 2) / (2 * float(second))) / (wide * math.sqrt(2 * math.pi))
        assert total == pytest.approx(math.exp(-z * z / (2 * float(variance))) / (3000 * math.sqrt(2 * math.pi)), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 2730.0, 2731.0, 12345.6, 2.0**24, noise.MOST_SIGMA])
def test_the_parts_of_any_width_keep_what_the_proof_asks(sigma: float) -> None:
    parts = levels(Fraction(sigma) ** 2)
    assert sum(factor**2 * variance for factor, variance in parts) == Fraction(sigma) ** 2
    assert len(parts) <= 5 and parts[-1][1] <= 2730**2
    for (factor, variance), (following, _) in itertools.pairwise(parts):
        k = following // factor
        left = sum((f // factor) ** 2 * v for f, v in parts if f >= factor)
        tau = math.sqrt(variance * (left - variance) / k**2 / left)
        assert k <= 2**10 and tau > 1.99 and 2.1 * math.exp(-2 * math.pi**2 * tau**2) < 2**-111


def test_wide_noise_has_its_width_and_no_mean() -> None:
    sigma = 2.0**24
    numbers = drawn(Fraction(sigma) ** 2, 400_000) / sigma
    assert abs(numbers.mean()) < 4 / math.sqrt(len(numbers))
    assert stats.kstest(numbers, "norm").pvalue > 1e-3


def test_it_is_that_of_the_paper() -> None:
    """Against the rejection sampler of Canonne, Kamath and Steinke, written number by number in fractions."""
    variance = Fraction(9, 2)
    theirs = Paper(random.Random(3))
    a = np.array([theirs.gaussian(variance) for _ in range(20_000)])
    b = drawn(variance, 20_000, seed=4)
    values = range(-6, 7)
    counts = [[(numbers == x).sum() for x in values] for numbers in (a, b)]
    assert stats.chi2_contingency(np.array(counts)).pvalue > 1e-3


def test_noise_is_never_the_same_twice() -> None:
    out = np.zeros((2, 1000))
    for row in out:
        DiscreteGaussian(Fraction(10**6), SystemStream()).add_to(row)
    assert (out[0] != out[1]).any()


def test_a_width_that_cannot_be_is_refused() -> None:
    for variance in (Fraction(0), Fraction(-1), Fraction(2 * noise.MOST_SIGMA) ** 2):
        with pytest.raises(ValueError, match="variance"):
            DiscreteGaussian(variance, Fixed(0))


def chi_square(seen: list[float], expected: list[float]) -> float:
    """The p-value, where cells of few are joined."""
    pairs = sorted(zip(expected, seen, strict=True), reverse=True)
    large = [pair for pair in pairs if pair[0] >= 10]
    few = [pair for pair in pairs if pair[0] < 10]
    if sum(e for e, _ in few) >= 1:
        large.append((sum(e for e, _ in few), sum(s for _, s in few)))
    statistic = sum((s - e) ** 2 / e for e, s in large)
    return float(stats.chi2.sf(statistic, len(large) - 1))


class Paper:
    """Algorithms 1 to 3 of arXiv:2004.00010."""

    def __init__(self, bits: random.Random) -> None:
        self._bits = bits

    def gaussian(self, variance: Fraction) -> int:
        t = math.isqrt(variance.numerator // variance.denominator) + 1
        while True:
            y = self._laplace(t)
            if self._happens((abs(y) - variance / t) ** 2 / (2 * variance)):
                return y

    def _laplace(self, t: int) -> int:
        while True:
            u = self._bits.randrange(t)
            if not self._happens(Fraction(u, t)):
                continue
            v = 0
            while self._happens(Fraction(1)):
                v += 1
            negative, size = self._bits.randrange(2) == 1, u + t * v
            if not (negative and size == 0):
                return -size if negative else size

    def _happens(self, gamma: Fraction) -> bool:
        """With probability exp(-gamma)."""
        while gamma > 1:
            if not self._happens(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while self._bits.randrange(k * gamma.denominator) < gamma.numerator:
            k += 1
        return k % 2 == 1
