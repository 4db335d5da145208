"""From a plan's reference to an algorithm."""

from __future__ import annotations

from freehold.algorithms.rounding import sent_as
from freehold.algorithms.wrappers import wrapped
from freehold.core import Algorithm, Task, algorithm_entry
from freehold.plan import AlgorithmRef, SentAs


def build_algorithm(task: Task, reference: AlgorithmRef, dtype: SentAs | None = None) -> Algorithm:
    """The algorithm of a plan, in its wrappers; its contributions rounded to `dtype`, if the plan says one."""
    algorithm = algorithm_entry(reference.name).build(task, **reference.hyperparameters)
    for wrapper in reference.wrappers:
        algorithm = wrapped(algorithm, wrapper.name, **wrapper.hyperparameters)
    return algorithm if dtype is None else sent_as(algorithm, dtype)
