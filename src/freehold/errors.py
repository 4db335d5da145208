"""Every error Freehold raises on purpose: numbered, never renumbered, each with an entry in docs/reference/errors.md.

    FreeholdError
    ├── UsageError            100  the command or call contradicts itself
    ├── UnknownName           101  no algorithm, task, engine, ... of that name
    ├── MissingExtra          102  an optional dependency is not installed
    ├── PlanError             110  a plan is malformed
    │   ├── UnknownKey        111  a key that nobody reads
    │   ├── HyperparameterError 112  a hyper-parameter out of its range
    │   └── PlanVersion       113  a plan of another format version
    ├── SpecMismatch          114  a contribution that the plan's spec does not list
    ├── CheckpointError       120  a checkpoint that does not fit what is to be resumed
    ├── DataError             200  data that cannot be used
    │   ├── ColumnMissing     201  a column that is not there
    │   ├── BadValue          202  a missing value or text where a number is expected
    │   ├── LabelError        203  labels that the task does not know
    │   ├── SplitOverlap      204  the same example in two splits
    │   ├── TooFewExamples    205  a client below `min_examples`
    │   ├── NotEnoughMemory   206  a table that does not fit
    │   ├── Unreadable        207  a file that is missing or malformed
    │   └── SchemaError       208  a schema that contradicts itself
    └── SimulationError       600  a simulation that cannot go on
        ├── NotBatchable      601  a module that the vector engine cannot run for many clients at once
        ├── Diverged          602  a loss or a contribution that is no longer finite
        ├── NotPrivate        603  an algorithm or a module that record-level privacy does not cover
        └── TaskError         604  a module, a loss or a head that do not fit together

Ranges: 100-199 what a user typed or wrote, 200-299 data, 300-399 node, 400-499 coordinator, 500-599 wire, 600-699 simulation.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class FreeholdError(Exception):
    """A failure with a number, a message that says what was found and expected, and a hint that says what to do."""

    code: ClassVar[int] = 1
    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only `hint` would be lost on the way back from a worker process.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[FreeholdError], message: str, hint: str) -> FreeholdError:
    return kind(message, hint=hint)


def near_miss(name: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for the closest of `known`, or the list of all of them."""
    names = sorted(known)
    by_lower = {k.lower(): k for k in names}  # papers write FedBN
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else f"Known: {', '.join(names)}."


class UsageError(FreeholdError):
    """The command or call contradicts itself."""

    code = 100


class UnknownName(FreeholdError):
    """No algorithm, task, engine or data set of that name."""

    code = 101


class MissingExtra(FreeholdError):
    """An optional dependency is not installed."""

    code = 102


class PlanError(FreeholdError):
    """A plan is malformed."""

    code = 110


class UnknownKey(PlanError):
    """A key that nobody reads."""

    code = 111


class HyperparameterError(PlanError):
    """A hyper-parameter is out of its range or of the wrong type."""

    code = 112


class PlanVersion(PlanError):
    """A plan of a format version that this Freehold does not read."""

    code = 113


class SpecMismatch(FreeholdError):
    """A contribution has a name, shape or dtype that the plan's contribution spec does not list."""

    code = 114
    exit_code = 1


class CheckpointError(FreeholdError):
    """A checkpoint is damaged, or belongs to another study than the one to be resumed."""

    code = 120


class DataError(FreeholdError):
    """Data that cannot be used."""

    code = 200


class ColumnMissing(DataError):
    """A column that the schema or the command names is not in the data."""

    code = 201


class BadValue(DataError):
    """A missing value, text or infinity where a number is expected."""

    code = 202


class LabelError(DataError):
    """Labels that the task does not know."""

    code = 203


class SplitOverlap(DataError):
    """The same example stands in two splits."""

    code = 204


class TooFewExamples(DataError):
    """A client has fewer examples than `min_examples`."""

    code = 205


class NotEnoughMemory(DataError):
    """A table needs more memory than there is."""

    code = 206


class Unreadable(DataError):
    """A file is missing, unreadable or malformed."""

    code = 207


class SchemaError(DataError):
    """A schema contradicts itself."""

    code = 208


class SimulationError(FreeholdError):
    """A simulation cannot go on."""

    code = 600


class NotBatchable(SimulationError):
    """A module cannot be run for many clients at once, or mixes examples in a way padding would change."""

    code = 601


class Diverged(SimulationError):
    """A loss or a contribution is no longer finite; the last good state was kept."""

    code = 602


class NotPrivate(SimulationError):
    """Record-level privacy is set, and this algorithm or module touches examples other than by clipped gradients."""

    code = 603


class TaskError(SimulationError):
    """A module, a loss, a head and data that do not fit together."""

    code = 604
