"""From outputs to figures: what a client's own model does on its own examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from freehold.core import Sums, Task, hits


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One client's model on one split."""

    figures: Mapping[str, float]
    """"accuracy", "balanced_accuracy" and "log_loss", or "r2", "rmse" and "mae"; NaN where it has no meaning."""
    losses: tuple[float, ...]
    """The loss of each example."""
    right: tuple[float, ...]
    """Whether each example was classified right, 1 or 0; () for regression."""


def measure(task: Task, outputs: Tensor, y: Tensor, scale: float) -> Measured:
    """`scale` is the standard deviation that a regression target was divided by."""
    sums = task.measure(outputs, y)
    losses = tuple(task.losses(outputs, y).double().tolist())
    if not task.classes:
        return Measured(figures=value_figures(sums, scale), losses=losses, right=())
    return Measured(figures=class_figures(sums), losses=losses, right=tuple(hits(outputs, y).double().tolist()))


def class_figures(sums: Sums) -> dict[str, float]:
    """Balanced accuracy is the mean of the classes' recalls; with a single class in sight it says nothing."""
    count = float(sums["count"])
    seen = sums["count_by_class"] > 0
    recall = sums["correct_by_class"][seen] / sums["count_by_class"][seen]
    return {
        "accuracy": float(sums["correct"]) / count if count else math.nan,
        "balanced_accuracy": float(recall.mean()) if int(seen.sum()) > 1 else math.nan,
        "log_loss": float(sums["loss"]) / count if count else math.nan,
    }


def value_figures(sums: Sums, scale: float) -> dict[str, float]:
    """R squared against the mean of the same examples; errors in the target's own unit."""
    count = float(sums["count"])
    if not count:
        return {"r2": math.nan, "rmse": math.nan, "mae": math.nan}
    spread = float(sums["target_squared"]) - float(sums["target"]) ** 2 / count
    return {
        "r2": 1 - float(sums["squared_error"]) / spread if spread > 1e-12 else math.nan,
        "rmse": scale * math.sqrt(float(sums["squared_error"]) / count),
        "mae": scale * float(sums["absolute_error"]) / count,
    }
