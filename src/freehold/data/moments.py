"""Mean and standard deviation of a column for each client: from its own train rows, or from sums over all clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistics = Literal["client", "federated", "ranges", "none"]
Floats = NDArray[np.float64]

_FLAT = 1e-12  # a spread below this share of the values' size is rounding, not information

_FARTHEST = 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """For each client [N]: how many train values are known, their mean, and their standard deviation (1 if there is none)."""

    count: Floats
    mean: Floats
    scale: Floats
    flat: NDArray[np.bool_]  # the train values do not differ (or there are none)

    def standardize(self, values: Floats, code: NDArray[np.int64]) -> Floats:
        """(value - mean) / deviation, at most a million either way; 0 for missing cells and flat columns.

        values [T]; code [T], -1 = no client.
        """
        spread = np.where(self.flat, np.inf, self.scale)  # x / inf = 0
        with np.errstate(over="ignore"):
            scaled = np.clip((values - self.mean[code]) / spread[code], -_FARTHEST, _FARTHEST)
        return np.nan_to_num(scaled)


def fit(values: Floats, code: NDArray[np.int64], train: NDArray[Any], clients: int, statistics: Statistics) -> Moments:
    """Moments of the train rows that are not NaN. A sum runs over one client's rows in their order, so it depends on no other.

    "federated" takes two rounds of sums: counts and sums, then squares about the common mean. One round of plain squares
    would lose every digit of a column like a year or a time stamp.
    """
    use = train & ~np.isnan(values) & (code >= 0)
    owner, known = code[use], values[use]
    count = np.bincount(owner, minlength=clients).astype(np.float64)
    total = np.bincount(owner, weights=known, minlength=clients)
    if statistics == "federated":
        everyone = count.sum()
        mean = np.full(clients, total.sum() / max(everyone, 1.0))
        squares = np.bincount(owner, weights=(known - mean[owner]) ** 2, minlength=clients)
        count, squares = np.full(clients, everyone), np.full(clients, squares.sum())
    else:
        mean = total / np.maximum(count, 1.0)
        squares = np.bincount(owner, weights=(known - mean[owner]) ** 2, minlength=clients)
    deviation = np.sqrt(squares / np.maximum(count, 1.0))
    flat = deviation <= _FLAT * np.abs(mean)
    return Moments(count=count, mean=mean, scale=np.where(flat, 1.0, deviation), flat=flat)
