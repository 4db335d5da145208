"""What becomes of a contribution at the guard's door: checked, then clipped and noised where the plan promises it.

For `privacy.unit = "client"`, C = max_norm, s = contribution.scale and d numbers in all tensors together, in this order:

1. *Check*: names, shapes and dtypes are the plan's, every number is finite, and the header is the only one there is for them.
2. *Clip*: the L2 norm of all numbers, in units of 2**-s, is brought down to `L = C 2^s (1 - 2^-30) - sqrt(d) / 2` if it is above.
3. *Fixed point*: each number v becomes the integer rint(v). Rounding moves each by 1/2 at most, so the integers have a norm of at
   most `L (1 + 2^-37) + sqrt(d) / 2 < C 2^s`; 2^-37 is for float64 sums and products. So one client's contribution, against none,
   changes the integers by no more than C 2^s in L2: that is the sensitivity, rounding included.
4. *Noise*: to each integer, discrete Gaussian noise of `sigma = noise_multiplier C 2^s`. That is concentrated differential
   privacy of 1 / (2 noise_multiplier^2) (Canonne, Kamath, Steinke, 2020, theorem 14), and `noise.ERROR` in total variation.
5. *Back*: integers / 2^s in the dtype that travels. What float32 rounds away, or float16 cuts off, is post-processing.

Every contribution weighs 1 then; a weight by examples would tell a number without noise. With `unit` "none" or "record" the bytes
leave as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.errors import ReleaseRefused
from freehold.node.noise import DiscreteGaussian, Stream, SystemStream
from freehold.plan import Contribution, Privacy
from freehold.wire import codec
from freehold.wire.codec import Entry
from freehold.wire.local import Mapped, Memory, close

_SLACK: Final = 2.0**-30
_HUGE: Final = 2.0**300
"""Squares of what is below it are finite, and so is their sum."""


def released(departing: int, spec: Contribution, privacy: Privacy, *, stream: Callable[[], Stream] = SystemStream) -> int:
    """The sealed memory that may leave in the place of `departing`, sealed too: itself, or a noised copy that the caller closes.

    Raises SpecMismatch, TensorsMalformed and ReleaseRefused; then nothing may leave. `stream` is for tests: its bits are the
    noise.
    """
    with Mapped(departing) as view:
        if privacy.unit == "client":
            codec.fitting(view, spec)  # whether its numbers are finite, their norm tells
        else:
            codec.check(view, spec)
        head = codec.header(spec)
        if view[: len(head)] != head:
            raise ReleaseRefused(
                "A contribution's header says more than the plan's spec does.",
                hint="Names, shapes and dtypes have one order and one form; anything else could carry data.",
            )
        if privacy.unit != "client":
            return departing
        return _noised(view, spec, privacy, head, stream)


def _noised(view: memoryview, spec: Contribution, privacy: Privacy, head: bytes, stream: Callable[[], Stream]) -> int:
    assert privacy.max_norm is not None and privacy.noise_multiplier is not None, "the plan's own checks"
    spans = list(_spans(codec.layout(view).values()))
    fixed = FixedPoint.of(view, spans, 2.0**spec.scale, privacy.max_norm)
    unit = 2.0**-spec.scale
    sigma = Fraction(privacy.noise_multiplier) * Fraction(privacy.max_norm) * 2**spec.scale
    noise = DiscreteGaussian(sigma**2, stream())
    memory = Memory("released")
    try:
        memory.write(head)
        for span in spans:
            for numbers in fixed.integers(view, span):
                noise.add_to(numbers)
                np.multiply(numbers, unit, out=numbers)
                memory.write(_narrow(numbers, span.dtype).view(np.uint8).data)
        return memory.seal()
    except BaseException:
        close([memory.fd])
        raise


class FixedPoint(NamedTuple):
    """How a contribution becomes integers: each number times 2**-`shrink`, times `factor`, rounded."""

    shrink: int
    """0 but where squares would be infinite."""
    factor: float
    """2**s where nothing has to be clipped."""

    @classmethod
    def of(cls, view: memoryview, spans: Sequence[Entry], scale: float, max_norm: float) -> FixedPoint:
        """In units of 1 / `scale`, so that the integers' L2 norm is at most `max_norm * scale`.

        That must be at least the root of how many they are. Raises TensorsMalformed where a number is not finite: no square of a
        finite one is infinite here, so the sum tells.
        """
        wide = (part for span in spans if span.dtype == "float64" for _, part in codec.chunks(view, span))
        largest = max((float(max(-part.min(), part.max())) for part in wide), default=0.0)
        shrink = math.frexp(largest)[1] if math.isfinite(largest) and largest > _HUGE else 0
        once = cls(shrink, 1.0)
        squares = [float(np.dot(part, part)) for span in spans for part in once.scaled(view, span)]
        if not all(map(math.isfinite, squares)):
            codec.refuse_infinite()
        norm = math.sqrt(math.fsum(squares))
        limit = max_norm * scale * (1 - _SLACK) - math.sqrt(sum(math.prod(span.shape) for span in spans)) / 2
        return cls(shrink, scale if scale * norm <= limit and not shrink else limit / norm)

    def scaled(self, view: memoryview, span: Entry) -> Iterator[NDArray[np.float64]]:
        """A span's numbers, multiplied, piece by piece, in memory that is used again."""
        room = np.empty(codec.CHUNK, np.float64)
        for _, part in codec.chunks(view, span):
            numbers = room[: part.size]
            numbers[:] = part
            if self.shrink:
                np.ldexp(numbers, -self.shrink, out=numbers)
            if self.factor != 1.0:
                np.multiply(numbers, self.factor, out=numbers)
            yield numbers

    def integers(self, view: memoryview, span: Entry) -> Iterator[NDArray[np.float64]]:
        """The same, rounded."""
        for numbers in self.scaled(view, span):
            yield np.rint(numbers, out=numbers)


def _spans(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Neighbors of one dtype as one: many small tensors take no longer than a large one."""
    for dtype, group in groupby(entries, key=lambda entry: entry.dtype):
        each = list(group)
        yield Entry(dtype, (sum(math.prod(entry.shape) for entry in each),), each[0].begin, each[-1].end)


def _narrow(numbers: NDArray[np.float64], dtype: str) -> NDArray[np.generic]:
    """In the dtype that travels, finite."""
    if dtype == "bfloat16":
        bits = numbers.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, to even between two
    if dtype == "float16":
        numbers = np.clip(numbers, -65504.0, 65504.0)
    return numbers.astype(dtype)
