"""From a plan's reference to an algorithm, or to a family of them: one algorithm for each value of its scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from freehold.algorithms.rounding import sent_as
from freehold.algorithms.wrappers import wrapped
from freehold.core import Algorithm, Task, algorithm_entry, checked
from freehold.plan import AlgorithmRef, SentAs

Family = Callable[[Mapping[str, Tensor]], Algorithm]
"""Scalars [] by the name of a hyper-parameter -> the algorithm with these in place of its own."""


def build_algorithm(task: Task, reference: AlgorithmRef, dtype: SentAs | None = None) -> Algorithm:
    """The algorithm of a plan, in its wrappers; its contributions rounded to `dtype`, if the plan says one."""
    return family_of(task, reference, dtype)({})


def family_of(task: Task, reference: AlgorithmRef, dtype: SentAs | None = None) -> Family:
    """`build_algorithm` with some scalars left open: what it is called with takes their place, unchecked, so that they may be
    tensors, also under `vmap`. Raises HyperparameterError for those of `reference` at once."""
    entry = algorithm_entry(reference.name)
    settings: dict[str, Any] = checked(reference.name, entry.hyperparameters, reference.hyperparameters)

    def build(scalars: Mapping[str, Tensor]) -> Algorithm:
        algorithm = entry.factory(task, **{**settings, **scalars})
        for wrapper in reference.wrappers:
            algorithm = wrapped(algorithm, wrapper.name, **wrapper.hyperparameters)
        return algorithm if dtype is None else sent_as(algorithm, dtype)

    return build
