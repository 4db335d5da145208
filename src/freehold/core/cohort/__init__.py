"""How a cohort runs: batching rules of `descend` and `gradient`, in force within `executing` and nowhere else."""

from freehold.core.cohort.examples import ExamplePair, ExamplePairs, example_pairs
from freehold.core.cohort.executing import Executor, executing
from freehold.core.cohort.factors import Factors, LowRank, Touched, dense, weighted_sum
from freehold.core.cohort.replay import Finding, explain

__all__ = [
    "ExamplePair",
    "ExamplePairs",
    "Executor",
    "Factors",
    "Finding",
    "LowRank",
    "Touched",
    "dense",
    "example_pairs",
    "executing",
    "explain",
    "weighted_sum",
]
