"""The events of a small study, as trackers hear them."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.events import Event

CELLS = (("fedavg", 0), ("fedavg", 1), ("Ditto: lam = 0.5/2", 0))


def accuracy(row: str, seed: int, at: int) -> float:
    """What the row reached in a round: a number of its own for each."""
    return (len(row) + seed + at) / 128  # exact in float32


def study() -> Iterator[Event]:
    """Each cell with rounds 2 and 4, told one after the other."""
    yield Event("study.planned", {"cells": len(CELLS)})
    for done, (row, seed) in enumerate(CELLS, 1):
        yield Event("cell.started", {"row": row, "seed": seed})
        for at in (2, 4):
            yield Event("round.closed", {"row": row, "seed": seed, "round": at, "rounds": 4})
            yield Event("round.evaluated", {"row": row, "seed": seed, "round": at, "accuracy": accuracy(row, seed, at)})
        yield Event("cell.closed", {"row": row, "seed": seed, "done": done, "cells": len(CELLS), "seconds": 0.5})
