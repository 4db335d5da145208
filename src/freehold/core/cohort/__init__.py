"""How a cohort runs: batching rules of `descend` and `gradient`, in force within `executing` and nowhere else."""

from freehold.core.cohort.executing import Executor, executing

__all__ = ["Executor", "executing"]
