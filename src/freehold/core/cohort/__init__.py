"""How a cohort runs: batching rules of `descend` and `gradient`, in force within `executing` and nowhere else."""

from freehold.core.cohort.executing import Executor, executing
from freehold.core.cohort.lowrank import LowRank, dense, weighted_sum
from freehold.core.cohort.replay import Finding, explain

__all__ = ["Executor", "Finding", "LowRank", "dense", "executing", "explain", "weighted_sum"]
