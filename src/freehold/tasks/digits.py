"""Handwritten digits, dealt out to clients: label skew made to order."""

from __future__ import annotations

from freehold.core import Task
from freehold.data import Prepared
from freehold.data import digits as digits_population
from freehold.plan import Training, Work
from freehold.tasks.definition import TaskDefinition, rates
from freehold.tasks.tables import classifier


def digits() -> TaskDefinition:
    """Which digit is it? 1,797 images of 8 x 8 pixels (scikit-learn); say how to partition them."""
    return TaskDefinition(
        name="digits",
        title="Handwritten digits",
        build=_build,
        load=digits_population,
        training=Training(rounds=60, batch_size=10, epochs=1),
        adaptation=Work(epochs=5),
        hyperparameters=rates(0.1),
        statistics="none",
        min_examples=10,
    )


def _build(prepared: Prepared, seed: int) -> Task:
    return classifier(prepared, seed, hidden=(64,))
