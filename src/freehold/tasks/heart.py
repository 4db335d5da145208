"""Heart disease in four hospitals: 920 real patients, what is missing marked as missing."""

from __future__ import annotations

from freehold.data import heart as heart_population
from freehold.data.heart import SCHEMA
from freehold.plan import Training
from freehold.tasks.definition import TaskDefinition, rates
from freehold.tasks.tables import classifier


def heart() -> TaskDefinition:
    """Is a coronary vessel narrowed? Cleveland, Hungary, Switzerland, VA Long Beach (UCI Heart Disease, CC BY 4.0)."""
    return TaskDefinition(
        name="heart",
        title="Heart disease",
        build=classifier,
        load=heart_population,
        schema=SCHEMA,
        training=Training(rounds=20, batch_size=16, epochs=2),
        hyperparameters=rates(0.05),
        statistics="client",
        min_examples=20,
        noun=("hospital", "hospitals"),
    )
