"""What a node tells of its own benefit where its owner shares it only roughly."""

from __future__ import annotations

from collections.abc import Mapping

from freehold.wire.messages import Measured

BIN = 0.05
"""Of a figure: five percentage points."""
TENS = 10
"""To which counts are rounded."""


def binned(splits: Mapping[str, Measured]) -> dict[str, Measured]:
    """Sums whose figures are rounded to five percentage points, and whose counts are rounded to tens."""
    return {name: _rough(each) for name, each in splits.items()}


def _rough(measured: Measured) -> Measured:
    counts = {name: value for name, value in measured.sums.items() if name.partition("/")[0].startswith("count")}
    rough = {name: float(_tens(value)) for name, value in counts.items()}
    for name, value in measured.sums.items():
        if name not in counts:
            _base, _, of_class = name.partition("/")
            count = f"count_by_class/{of_class}" if of_class else "count"
            exact, shown = counts.get(count, measured.examples), rough.get(count, _tens(measured.examples))
            rough[name] = _figure(value / exact) * shown if exact else 0.0
    return Measured(examples=_tens(measured.examples), sums={name: rough[name] for name in measured.sums})


def _figure(value: float) -> float:
    """To five hundredths, and from 1 on to two digits: a loss of 12 digits would be as many letters."""
    rough = round(value / BIN) * BIN
    return rough if abs(value) < 1 else float(f"{rough:.1e}")


def _tens(count: float) -> int:
    """To the nearest ten, but 10 where there is anything at all: a mean needs a count."""
    return max(TENS * round(count / TENS), TENS) if count > 0 else 0
