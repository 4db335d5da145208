"""What trackers take from an event: which cell of the study it is about, and its figures."""

from __future__ import annotations

from typing import NamedTuple

from freehold.events import Event

_NOT_FIGURES = frozenset({"row", "seed", "round"})


class Cell(NamedTuple):
    """One row of a study with one seed: what a tracker calls a run."""

    row: str
    seed: int


def cell_of(event: Event) -> Cell:
    """The cell that a `round.evaluated` or `cell.closed` is about."""
    return Cell(str(event.fields["row"]), int(event.fields["seed"]))


def figures_of(event: Event) -> dict[str, float]:
    """The figures of a `round.evaluated`, by the name of the metric."""
    return {
        name: float(value)
        for name, value in event.fields.items()
        if name not in _NOT_FIGURES and isinstance(value, int | float) and not isinstance(value, bool)
    }
