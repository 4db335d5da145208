"""What a plan promises about privacy, in numbers. `privacy.accounting` alone loads dp-accounting, and only when asked."""

from __future__ import annotations

from freehold.privacy.accounting import Mechanism, epsilon, epsilon_by_rdp, epsilon_of, mechanism_of, planned_epsilon

__all__ = [
    "Mechanism",
    "epsilon",
    "epsilon_by_rdp",
    "epsilon_of",
    "mechanism_of",
    "planned_epsilon",
]
