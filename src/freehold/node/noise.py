"""Discrete Gaussian noise for what leaves a node, in integers. Canonne, Kamath, Steinke, NeurIPS 2020, arXiv:2004.00010.

`P(x) = exp(-x^2 / (2 sigma^2)) / Z` over all integers x; per client it hides what the continuous Gaussian hides, and it has no
floating-point tail that tells the number beneath. Their own sampler rejects, number by number. This one looks up tables
instead, in three steps, whose errors add up to less than `ERROR` in total variation for each number drawn:

*A table*, for sigma up to 2730: probabilities in units of 2**-96, in Walker's and Vose's alias form with 2**16 cells. A cell and
16 bits of a threshold are looked up; where these are equal, 64 more bits decide. So the table is drawn from exactly. Rounding to
units is at most 2**16 * 2**-96 = 2**-80; what lies beyond the table, at least 12 sigma away, weighs less than 2**-100.

*Wider noise* is `x1 + k * x2`, k = 2**b, with x1 of sigma_1 = 2 k and x2 of `sigma_2^2 = (sigma^2 - sigma_1^2) / k^2`, again and
again. It is nearly a discrete Gaussian of sigma: completing the square in
`P(x1 + k x2 = z) ~ sum over x2 of exp(-(z - k x2)^2 / (2 sigma_1^2) - x2^2 / (2 sigma_2^2))` leaves `exp(-z^2 / (2 sigma^2))`
times a sum over a shifted lattice of a Gaussian of width `tau = sigma_1 sigma_2 / sigma`. By Poisson summation such a sum is the
same for every shift up to a factor in [1 - e, 1 + e], `e < 2.1 exp(-2 pi^2 tau^2)`. Here sigma >= 600 sigma_1, so tau > 1.99
and e < 2**-111.

*Random bits* are AES-256 in counter mode, under a key and a counter that the operating system draws for each contribution.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

PIECE: Final = 1 << 15
"""Numbers drawn in one go: what they are made of stays in the cache."""

ERROR: Final = 2.0**-77
"""More than the total variation between a number that is drawn and the discrete Gaussian, however wide."""

MOST_SIGMA: Final = 2.0**40
"""The widest noise: float64 holds every such number exactly, by far."""

_CELLS: Final = 1 << 16
_MIDDLE: Final = _CELLS // 2
_LARGEST: Final = 2730
"""Of a sigma that a table holds: twelve of it fit on either side."""
_MOST_BITS: Final = 10
_CELL_UNITS: Final = 1 << 80
_DIGITS: Final = 60


class Stream(Protocol):
    """Random bytes."""

    def fill(self, into: NDArray[np.uint16]) -> None:
        """Fill the array."""

    def word(self) -> int:
        """64 more bits."""


class SystemStream:
    """Random bytes nobody can foretell: AES-256-CTR, keyed anew by the operating system."""

    def __init__(self) -> None:
        self._pad = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
        self._zeros = bytes(2 * PIECE)

    def fill(self, into: NDArray[np.uint16]) -> None:
        """Fill the array."""
        bytes_ = into.view(np.uint8).data
        for begin in range(0, len(bytes_), len(self._zeros)):
            part = bytes_[begin : begin + len(self._zeros)]
            self._pad.update_into(memoryview(self._zeros)[: len(part)], part)

    def word(self) -> int:
        """64 more bits."""
        return int.from_bytes(self._pad.update(bytes(8)), "little")


class Table(NamedTuple):
    """A distribution over [-2**15, 2**15) in alias form. Cell i says i, or i + step[i] from its threshold on."""

    threshold: NDArray[np.uint16]
    """The first 16 bits of it."""
    further: NDArray[np.uint64]
    """The other 64."""
    step: NDArray[np.int32]


class DiscreteGaussian:
    """Draws from the discrete Gaussian of this variance."""

    def __init__(self, variance: Fraction, stream: Stream) -> None:
        """ValueError unless the variance is above 0 and at most `MOST_SIGMA` squared."""
        if not 0 < variance <= Fraction(MOST_SIGMA) ** 2:
            raise ValueError("a variance that is not positive, or too large")
        # Steps modulo 2**16 lead to the same cells, in numbers a quarter as wide.
        self._levels = [(float(f), of, of.step.astype(np.uint16)) for f, of in ((f, table(part)) for f, part in levels(variance))]
        self._stream = stream
        self._raw = np.empty(2 * PIECE, np.uint16)
        self._at, self._found = np.empty(PIECE, np.intp), np.empty(PIECE, np.float64)
        self._edge, self._step, self._other = np.empty(PIECE, np.uint16), np.empty(PIECE, np.uint16), np.empty(PIECE, np.bool_)

    def add_to(self, numbers: NDArray[np.float64]) -> None:
        """Add independent noise to each of at most `PIECE` whole numbers, exactly while they stay below 2**53."""
        for factor, of, steps in self._levels:
            found = self._draw(of, steps, numbers.size)
            if factor != 1:
                np.multiply(found, factor, out=found)
            numbers += found

    def _draw(self, of: Table, steps: NDArray[np.uint16], count: int) -> NDArray[np.float64]:
        self._stream.fill(self._raw[: 2 * count])
        cell, low = self._raw[:count], self._raw[count : 2 * count]
        at, edge, step, other = self._at[:count], self._edge[:count], self._step[:count], self._other[:count]
        at[:] = cell
        # Every index is in range: "clip" spares numpy a check and a copy.
        np.take(of.threshold, at, out=edge, mode="clip")
        np.take(steps, at, out=step, mode="clip")
        np.equal(low, edge, out=other)
        ties = other.nonzero()[0] if other.any() else ()
        np.greater_equal(low, edge, out=other)
        for tie in ties:
            other[tie] = self._stream.word() >= int(of.further[cell[tie]])
        edge[:] = other
        np.multiply(step, edge, out=step)
        np.add(step, cell, out=step)
        np.bitwise_xor(step, _MIDDLE, out=step)  # as a signed number: less the middle
        found = self._found[:count]
        found[:] = step.view(np.int16)
        return found


def levels(variance: Fraction) -> list[tuple[int, Fraction]]:
    """(factor, variance) of independent discrete Gaussians whose weighted sum has this variance."""
    out, factor = [], 1
    bits = 0
    while variance > (_LARGEST << bits) ** 2:
        bits += 1
    while bits:
        taken = math.ceil(bits / math.ceil(bits / _MOST_BITS))
        k = 1 << taken
        out.append((factor, Fraction((2 * k) ** 2)))
        variance, factor, bits = (variance - (2 * k) ** 2) / k**2, factor * k, bits - taken
    return [*out, (factor, variance)]


@lru_cache(maxsize=16)
def table(variance: Fraction) -> Table:
    """The discrete Gaussian of a variance of at most `_LARGEST` squared."""
    return _aliased(_units(variance))


def _units(variance: Fraction) -> list[int]:
    """The probability of each of the integers from 0 on, in 2**-96; with those of their negatives they are exactly one."""
    with localcontext(prec=_DIGITS):  # gone through twice: to keep so many digits would take megabytes
        whole = Decimal(_CELLS * _CELL_UNITS) / (2 * sum(_weights(variance)) - 1)
        units = [int(weight * whole) for weight in _weights(variance)]
    units[0] += _CELLS * _CELL_UNITS - (2 * sum(units) - units[0])
    return units


def _weights(variance: Fraction) -> Iterator[Decimal]:
    # exp(-(k + 1)^2 c) = exp(-k^2 c) * exp(-(2 k + 1) c)
    ratio = (-Decimal(variance.denominator) / (2 * variance.numerator)).exp()
    square, weight = ratio * ratio, Decimal(1)
    for _ in range(_MIDDLE):
        yield weight
        if weight <= Decimal("1e-32"):
            break
        weight *= ratio
        ratio *= square


def _aliased(units: list[int]) -> Table:
    """Vose's construction, in whole numbers."""
    left = [0] * _CELLS
    for k, each in enumerate(units):
        left[_MIDDLE + k] = left[_MIDDLE - k] = each
    alias = array("I", range(_CELLS))
    small = array("I", (i for i, each in enumerate(left) if each < _CELL_UNITS))
    large = array("I", (i for i, each in enumerate(left) if each > _CELL_UNITS))
    while small:
        low, high = small.pop(), large[-1]
        alias[low] = high
        left[high] -= _CELL_UNITS - left[low]
        if left[high] <= _CELL_UNITS:
            large.pop()
            if left[high] < _CELL_UNITS:
                small.append(high)
    return Table(
        # A full cell has no step, so whatever its threshold says is right.
        np.fromiter((each >> 64 & 0xFFFF for each in left), np.uint16, _CELLS),
        np.fromiter((each & (1 << 64) - 1 for each in left), np.uint64, _CELLS),
        np.fromiter((other - i for i, other in enumerate(alias)), np.int32, _CELLS),
    )
