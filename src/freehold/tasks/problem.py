"""From a plan and data to the learning problem: the same on a simulating machine, on a node and on a coordinator."""

from __future__ import annotations

from freehold.core import Privacy, Task, private
from freehold.data import Prepared
from freehold.errors import PlanError
from freehold.plan import Plan
from freehold.tasks.definition import TaskDefinition


def build_task(definition: TaskDefinition, prepared: Prepared, plan: Plan, seed: int) -> Task:
    """The learning problem of a plan, under its privacy."""
    task = definition.build(prepared, seed)
    promised = plan.privacy
    if promised.unit == "client":
        raise PlanError(
            'privacy.unit = "client" is what a node\'s guard does, and there is no guard in a simulation.',
            hint='Simulate with unit = "none" or "record".',
        )
    if promised.max_norm is None or promised.noise_multiplier is None or promised.expected_batch is None:
        return task
    return private(
        task,
        Privacy(max_norm=promised.max_norm, noise_multiplier=promised.noise_multiplier, expected_batch=promised.expected_batch),
    )
