"""How a cohort runs: batching rules of `descend` and `gradient`, in force within `executing` and nowhere else."""

from freehold.core.cohort.executing import Executor, executing
from freehold.core.cohort.lowrank import LowRank, dense, weighted_sum

__all__ = ["Executor", "LowRank", "dense", "executing", "weighted_sum"]
