"""What an attack shows about ε, in one run. Steinke, Nasr, Jagielski, NeurIPS 2023, arXiv:2305.08846.

Each of `canaries` examples (or contributions) is put in, or left out, by the toss of a coin of its own. Who sees what leaves
guesses for some of them whether they were in, and abstains for the others. A mechanism that is (ε, δ)-private lets nobody be
right too often.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_MOST_EPSILON = 100.0
"""Up to where a bound is sought: more than any number of guesses can show."""


class Guesses(NamedTuple):
    """How an attack did."""

    canaries: int
    made: int
    """Guesses; for the other canaries there was none."""
    right: int


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """The probability of so many right guesses, or more, if the mechanism is (ε, δ)-private: at most this. Theorem 5.2.

    `P[right >= v] <= P[B >= v] + 2 m δ max over i in 1..v of P[v > B >= v - i] / i`, B binomial of r guesses, each right with
    probability `e^ε / (1 + e^ε)`.
    """
    canaries, made, right = guesses
    if not 0 <= right <= made <= canaries or made < 1:
        raise ValueError(f"no such guesses: {guesses}")
    accuracy = 1 / (1 + math.exp(-epsilon))
    masses = [_mass(made, accuracy, k) for k in range(made + 1)]
    below, worst = 0.0, 0.0
    for i in range(1, right + 1):
        below += masses[right - i]
        worst = max(worst, below / i)
    return min(1.0, math.fsum(masses[right:]) + 2 * canaries * delta * worst)


def least_epsilon(guesses: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """The lower bound on ε at this confidence: with a smaller one, so many right guesses would be rarer than `1 - confidence`."""
    if p_value(guesses, 0.0, delta) >= 1 - confidence:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _mass(count: int, probability: float, k: int) -> float:
    """Of the binomial distribution."""
    if probability in (0.0, 1.0):
        return float(k == count * probability)
    log = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(log + k * math.log(probability) + (count - k) * math.log1p(-probability))
