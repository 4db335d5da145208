"""The sum of a round in fixed point: exact integers, so that it is the same in any order, on any replica, under any mask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from mmap import mmap
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.errors import CheckpointError, TensorsMalformed
from freehold.plan import Contribution
from freehold.wire import codec
from freehold.wire.codec import Buffer, Entry, Source
from freehold.wire.packing import Unpacked

_ROOM: Final = 2**62
"""What the sum of all contributions may reach; int64 has as much again, for noise."""

_HEADER_BYTES: Final = 1 << 16
"""What the header of a contribution may take beside its tensors."""

_HEARD, _WEIGHT, _FIRST = 0, 1, 2


class SumLayout(NamedTuple):
    """Where a sum's tensors lie: in words of eight bytes, after the number heard and the sum of their weights."""

    length: int
    """In bytes."""
    words: Mapping[str, slice]


class Span(NamedTuple):
    """Tensors of one dtype that are neighbors in a contribution and in the sum."""

    entry: Entry
    words: slice


def layout_of(spec: Contribution) -> SumLayout:
    """How much memory a sum of contributions of this spec takes, and where in it each tensor lies: in the spec's order."""
    words, at = {}, _FIRST
    for tensor in spec.tensors:
        words[tensor.name] = slice(at, at := at + math.prod(tensor.shape))
    return SumLayout(8 * at, words)


def most_bytes(spec: Contribution) -> int:
    """More than a contribution of this spec takes before it is compressed: eight bytes for each number, and its header."""
    return layout_of(spec).length + _HEADER_BYTES


class FixedPointSum:
    """The weighted sum of up to `most_clients` contributions, in memory that the caller owns and may share: zeros at first.

    Over memory that cannot be written, it can be read only. Contributions come as they travel: compressed, if the spec says so.

    A float x with weight w counts as `rint(w * x * 2**scale)`, the product in float64, the rest exactly; an integer as w * x,
    for which w must be whole. Calls must not overlap.
    """

    def __init__(self, spec: Contribution, memory: memoryview | mmap, *, most_clients: int) -> None:
        self._spec = spec
        self._layout = layout_of(spec)
        self._most_clients = most_clients
        self._bound = _ROOM // most_clients
        self._words: NDArray[np.int64] = np.frombuffer(memory, np.int64, self._layout.length // 8)
        self._known: tuple[bytes, int, Sequence[Span]] | None = None

    @property
    def heard(self) -> int:
        """How many contributions are in the sum."""
        return int(self._words[_HEARD])

    @property
    def weight(self) -> int:
        """The sum of their weights, each as `rint(w * 2**scale)`."""
        return int(self._words[_WEIGHT])

    def clear(self) -> None:
        """Be the sum of nothing."""
        self._words[:] = 0

    def tensor(self, name: str) -> NDArray[np.int64]:
        """One tensor's sum, in one dimension; a read-only view that follows the sum."""
        words = self._words[self._layout.words[name]]
        words.flags.writeable = False
        return words

    def check(self, view: Buffer, weight: float) -> Sequence[Span]:
        """What is in a contribution that may be added, if nobody can change it meanwhile.

        Raises EncodingRefused, TensorsMalformed or SpecMismatch for anything but finite tensors as the spec lists them whose
        products stay below 2**62 / most_clients.
        """
        source = self._source(view)
        spans = self._spans(source)
        factor = weight * 2.0**self._spec.scale
        if not (weight >= 0 and self._fits(factor)):
            raise TensorsMalformed(
                f"A contribution has the weight {weight}.", hint="It must be finite, not negative and bounded by the plan."
            )
        for span in spans:
            self._check(source, span.entry, weight, factor)
        return spans

    def _spans(self, view: Source) -> Sequence[Span]:
        """Where the tensors lie. Honest contributions begin alike: a header and length that were sound before are so again."""
        if isinstance(view, Unpacked):
            return self._joined(codec.fitting(view, self._spec))
        if self._known is not None:
            header, length, spans = self._known
            if len(view) == length and view[: len(header)] == header:
                return spans
        spans = self._joined(codec.fitting(view, self._spec))
        self._known = bytes(view[: min((span.entry.begin for span in spans), default=0)]), len(view), spans
        return spans

    def _joined(self, entries: Mapping[str, Entry]) -> Sequence[Span]:
        """Neighbors as one: many small tensors take no longer than a large one."""
        spans: list[Span] = []
        for name, entry in entries.items():
            last, words = spans[-1] if spans else None, self._layout.words[name]
            if last and (last.entry.dtype, last.entry.end, last.words.stop) == (entry.dtype, entry.begin, words.start):
                spans.pop()
                words = slice(last.words.start, words.stop)
                entry = Entry(entry.dtype, (words.stop - words.start,), last.entry.begin, entry.end)
            spans.append(Span(entry, words))
        return spans

    def add(self, view: Buffer, weight: float) -> None:
        """Add a contribution that `check` lets pass, or raise as it does; ValueError for one more than `most_clients`.

        What raises has changed nothing.
        """
        self.add_checked(view, weight, self.check(view, weight))

    def add_checked(self, view: Buffer, weight: float, spans: Sequence[Span], *, damping: float = 1.0) -> None:
        """Add a contribution in which `check` has found these spans.

        `damping`, from 0 to 1, multiplies the tensors, which must be floats then, and not what the contribution weighs: the
        mean of damped contributions is a smaller step.
        """
        if self.heard >= self._most_clients:
            raise ValueError(f"one contribution more than {self._most_clients}")
        factor = weight * 2.0**self._spec.scale
        source = self._source(view)
        for span in spans:
            self._fold(source, span.entry, self._words[span.words], weight, factor * damping)
        self._words[_WEIGHT] += round(factor)
        self._words[_HEARD] += 1

    def _source(self, view: Buffer) -> Source:
        return view if self._spec.compression == "none" else Unpacked(view, limit_bytes=most_bytes(self._spec))

    def _fits(self, product: float) -> bool:
        # False for NaN and infinities; comparing a float with an int is exact in Python.
        return abs(product) <= self._bound

    def _check(self, view: Source, entry: Entry, weight: float, factor: float) -> None:
        whole = "int" in entry.dtype
        if whole and not weight.is_integer():
            raise TensorsMalformed(
                f"A contribution of whole numbers has the weight {weight}.", hint="The plan must weigh by a whole number."
            )
        for _, part in codec.chunks(view, entry):
            # Rounding is monotone: the largest product is that of the largest number. NaN outlasts min and max.
            for extreme in (part.min().item(), part.max().item()):
                if not self._fits(extreme * int(weight) if whole else extreme * factor):
                    raise TensorsMalformed(
                        f"A contribution has a number that is not finite, or too large for a fixed-point sum of "
                        f"{self._most_clients} clients.",
                        hint="Lower the learning rate or the plan's contribution.scale, or clip.",
                    )

    @staticmethod
    def _fold(view: Source, entry: Entry, total: NDArray[np.int64], weight: float, factor: float) -> None:
        products = np.empty(min(codec.CHUNK, total.size), np.float64)
        rounded = np.empty(products.size, np.int64)
        for place, part in codec.chunks(view, entry):
            count = part.size
            if "int" in entry.dtype:
                np.multiply(part, int(weight), out=rounded[:count], dtype=np.int64)
            else:
                # Without `dtype`, numpy would multiply float32 by a Python float in float32.
                np.multiply(part, factor, out=products[:count], dtype=np.float64)
                np.rint(products[:count], out=products[:count])
                rounded[:count] = products[:count]
            total[place] += rounded[:count]

    def merge(self, other: FixedPointSum) -> None:
        """Add another sum of the same spec; raises ValueError, and then has changed nothing, above `most_clients` together."""
        if other._spec != self._spec or self.heard + other.heard > self._most_clients:
            raise ValueError("two sums of different specs, or of too many clients together")
        self._words += other._words

    def dump(self) -> Iterator[Buffer]:
        """The sum as safetensors, for a checkpoint."""
        return codec.pieces({"sum": self._words})

    def load(self, view: Buffer) -> None:
        """Become the sum that was dumped; raises CheckpointError, and then has changed nothing, unless it is one of this spec."""
        try:
            entries = codec.layout(view)
        except TensorsMalformed as error:
            raise _unfit() from error
        entry = entries.get("sum")
        if len(entries) != 1 or entry is None or (entry.dtype, entry.shape) != ("int64", self._words.shape):
            raise _unfit()
        found = codec.flat(view, entry)
        if not 0 <= int(found[_HEARD]) <= self._most_clients:
            raise _unfit()
        self._words[:] = found


def _unfit() -> CheckpointError:
    return CheckpointError("A tally's checkpoint is damaged or of another plan.", hint="The contributions are summed anew.")
