"""What a node's own measures may say at the guard's door: known sums, that can be true, over five examples or more.

The trainer suppresses as much itself, but it may run anybody's code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from freehold.errors import ReleaseRefused
from freehold.node.errands import OutgoingMeasures
from freehold.wire.messages import DIFFERING, Measured, Measures, encode

FEWEST: Final = 5
"""A sum over fewer examples does not leave."""

MOST: Final = 1e12
"""Of the size of a sum that is no count; what is larger is cut to it."""

MOST_BYTES: Final = 120_000
"""Of all of them: the guard hands them to the agent in one message, in base64."""

_COUNTS: Final = frozenset({"count", "correct", DIFFERING})
_SUMS: Final = frozenset({"loss", "squared_error", "absolute_error", "target", "target_squared"})
_BY_CLASS: Final = re.compile(r"(count|correct)_by_class/(0|[1-9][0-9]{0,3})")


def may_leave(splits: Mapping[str, Measured]) -> dict[str, Measured]:
    """The measures as they may leave; raises ReleaseRefused for what is not known, or cannot be true."""
    if not splits.keys() <= {"validation", "test"}:
        raise _refused("of another split than validation and test")
    return {split: _one(told) for split, told in splits.items()}


def known_choice(served: str) -> str:
    """What is served, as it may leave; raises ReleaseRefused."""
    if served not in ("", "local", "shared", "personal"):
        raise _refused("of another model than local, shared and personal")
    return served


def _one(told: Measured) -> Measured:
    if told.examples < FEWEST:
        return Measured(examples=told.examples, sums={})
    by_class = {name: value for name, value in told.sums.items() if _BY_CLASS.fullmatch(name)}
    plain = {name: value for name, value in told.sums.items() if name not in by_class}
    if not plain.keys() <= _COUNTS | _SUMS:
        raise _refused("with a sum that is not known")
    if not all(map(math.isfinite, told.sums.values())):
        raise _refused("with a number that is not finite")
    counts = {**by_class, **{name: plain[name] for name in _COUNTS & plain.keys()}}
    if not all(value.is_integer() and 0 <= value <= told.examples for value in counts.values()):
        raise _refused("with a count of more than there are, or of less than none")
    if plain.get("count", told.examples) != told.examples:
        raise _refused("that count other examples than they are of")
    for name in _SUMS & plain.keys():
        plain[name] = min(max(plain[name], -MOST), MOST)
    return Measured(examples=told.examples, sums={**plain, **(by_class if _classes_may(by_class, told.examples) else {})})


def _classes_may(by_class: Mapping[str, float], examples: int) -> bool:
    """Whether each class has five examples: from all but one the last could be worked out."""
    seen = {name.split("/")[1]: value for name, value in by_class.items() if name.startswith("count_")}
    right = {name.split("/")[1]: value for name, value in by_class.items() if name.startswith("correct_")}
    if sum(seen.values()) > examples or not right.keys() <= seen.keys() or any(right[k] > seen[k] for k in right):
        raise _refused("whose classes do not add up")
    return bool(seen) and min(seen.values()) >= FEWEST


def _refused(what: str) -> ReleaseRefused:
    return ReleaseRefused(f"Training code gave measures {what}.", hint="Nothing was sent; the task has to be mended.")


def measures_body(found: OutgoingMeasures, *, run: str, round: int) -> bytes:
    """The message as it leaves; raises ReleaseRefused for one that is too long."""
    body = encode(Measures(run=run, round=round, splits=found.splits, alone=found.alone, served=found.served))  # type: ignore[arg-type]
    if len(body) > MOST_BYTES:
        raise _refused(f"of {len(body)} bytes")
    return body
