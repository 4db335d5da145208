"""From a plan's reference to an algorithm."""

from __future__ import annotations

from freehold.algorithms.wrappers import wrapped
from freehold.core import Algorithm, Task, algorithm_entry
from freehold.plan import AlgorithmRef


def build_algorithm(task: Task, reference: AlgorithmRef) -> Algorithm:
    """The algorithm of a plan, in its wrappers."""
    algorithm = algorithm_entry(reference.name).build(task, **reference.hyperparameters)
    for wrapper in reference.wrappers:
        algorithm = wrapped(algorithm, wrapper.name, **wrapper.hyperparameters)
    return algorithm
