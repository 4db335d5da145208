"""What record-level privacy draws on a node: who is in a batch, and the noise; from the operating system, never from a seed.

With U = `steps_of_norm`, a step of DP-SGD over d parameters is, in integers:

1. *Clip*: the gradient of each example, times U / max_norm, is brought down to L2 norm `L = U (1 - 2^-30) - sqrt(d) / 2`.
2. *Fixed point*: each number is rounded. That moves an example by sqrt(d) / 2 at most, so its integers have norm U or less: what
   one example adds to the sum, rounding included. Sums are exact, so no order of adding tells anything.
3. *Noise*: discrete Gaussian noise of `sigma = noise_multiplier U` on the sum (`freehold.node.noise`).

An example takes part with a probability of at most what the plan says, in 2^-53. One whose gradient is not finite adds nothing.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freehold.core import State
from freehold.node.noise import PIECE, DiscreteGaussian, Stream, SystemStream
from freehold.privacy.accounting import steps_of_norm

_SLACK: Final = 2.0**-30
_CHANCES: Final = 53
"""Bits of a draw."""


class Secret:
    """The draws of one run; each is fresh, whoever asks for the same again."""

    def __init__(self, stream: Stream | None = None) -> None:
        """`stream` is for tests: its bits are the noise."""
        self._stream = stream or SystemStream()
        self._noise: dict[float, DiscreteGaussian] = {}

    def poisson(self, steps: int, examples: int, chance: float) -> Tensor:
        """[steps, examples] bool: each true by itself with probability `chance`, rounded down to a multiple of 2^-53."""
        bits = np.empty((steps * examples, 4), np.uint16)
        self._stream.fill(bits.reshape(-1))
        drawn = bits.reshape(-1).view(np.uint64) >> np.uint64(64 - _CHANCES)
        below = drawn < np.uint64(math.floor(Fraction(chance) * 2**_CHANCES))
        return torch.from_numpy(below.reshape(steps, examples))

    def noised_sum(self, each: State, counts: Tensor, max_norm: float, noise_multiplier: float) -> State:
        """As `freehold.core.NoisedSum`."""
        units = steps_of_norm(noise_multiplier)
        if noise_multiplier not in self._noise:
            self._noise[noise_multiplier] = DiscreteGaussian((Fraction(noise_multiplier) * Fraction(units)) ** 2, self._stream)
        noise = self._noise[noise_multiplier]
        total = np.zeros(sum(g[0].numel() for g in each.values()), np.float64)
        rows = torch.cat([g.detach().flatten(1).double().cpu() for g in each.values()], 1).numpy()
        for row, counted in zip(rows, counts.tolist(), strict=True):
            if counted:
                total += integers(row, max_norm, units)
        for begin in range(0, total.size, PIECE):
            noise.add_to(total[begin : begin + PIECE])
        total *= max_norm / units
        out, at = {}, 0
        for name, g in each.items():
            size = g[0].numel()
            part = torch.from_numpy(total[at : at + size].reshape(g.shape[1:]))
            out[name], at = part.to(g.dtype).to(g.device), at + size
        return out


def integers(gradient: NDArray[np.float64], max_norm: float, units: float) -> NDArray[np.float64]:
    """A gradient [d], clipped to `max_norm`, in steps of max_norm / units, rounded: of L2 norm `units` or less."""
    if not np.isfinite(gradient).all():
        return np.zeros_like(gradient)
    shrink = float(np.abs(gradient).max(initial=0.0))  # so that no square is infinite
    if not shrink:
        return np.zeros_like(gradient)
    scaled = gradient / shrink
    limit = units * (1 - _SLACK) - math.sqrt(gradient.size) / 2
    norm = math.sqrt(math.fsum(float(np.dot(part, part)) for part in np.array_split(scaled, -(-scaled.size // PIECE))))
    rounded: NDArray[np.float64] = np.rint(scaled * min(shrink / max_norm * units, limit / norm))
    return rounded
