"""Personalized federated learning algorithms, one short file each; `freehold.core.algorithm_entry(name)` finds them by name."""

from freehold.algorithms.build import Family, build_algorithm, family_of
from freehold.algorithms.costs import Costs, costs
from freehold.algorithms.rounding import sent_as
from freehold.algorithms.select import prefer, select
from freehold.algorithms.wrappers import WRAPPERS, with_clip, with_server_momentum, wrapped

__all__ = [
    "WRAPPERS",
    "Costs",
    "Family",
    "build_algorithm",
    "costs",
    "family_of",
    "prefer",
    "select",
    "sent_as",
    "with_clip",
    "with_server_momentum",
    "wrapped",
]
