"""How a cohort runs: batching rules of `descend` and `gradient`, in force within `executing` and nowhere else."""

from freehold.core.cohort.executing import Executor, executing
from freehold.core.cohort.factors import Factors, LowRank, Touched, dense, weighted_sum
from freehold.core.cohort.replay import Finding, explain

__all__ = [
    "Executor",
    "Factors",
    "Finding",
    "LowRank",
    "Touched",
    "dense",
    "executing",
    "explain",
    "weighted_sum",
]
