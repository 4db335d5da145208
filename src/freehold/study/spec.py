"""The contribution spec of a plan: names, shapes and dtypes of what leaves a node."""

from __future__ import annotations

import msgspec

from freehold.algorithms import build_algorithm
from freehold.data import Prepared
from freehold.engines import Feed, contribution_tensors, planned_work
from freehold.plan import Plan
from freehold.tasks import TaskDefinition, build_task


def with_spec(plan: Plan, definition: TaskDefinition, prepared: Prepared) -> Plan:
    """The same plan, with its contribution spec; only shapes are taken from the data."""
    algorithm = build_algorithm(
        build_task(definition, prepared, plan, plan.training.seed), plan.algorithm, plan.contribution.dtype
    )
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=plan.training.seed)
    tensors = contribution_tensors(algorithm, feed, planned_work(plan)[0])
    return msgspec.structs.replace(plan, contribution=msgspec.structs.replace(plan.contribution, tensors=tensors))
