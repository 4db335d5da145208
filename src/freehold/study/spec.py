"""The contribution spec of a plan, found by running one client update: names, shapes and dtypes of what leaves a node."""

from __future__ import annotations

import msgspec

from freehold.core import Round, flatten
from freehold.data import Prepared
from freehold.engines import Feed
from freehold.plan import Contribution, Plan, TensorSpec
from freehold.study.cell import build_algorithm, build_task, engine_of
from freehold.tasks import TaskDefinition


def with_spec(plan: Plan, definition: TaskDefinition, prepared: Prepared) -> Plan:
    """The same plan, with its contribution spec; only shapes are taken from the data.

    The spec is the algorithm's own; companions are plans of their own on a federation.
    """
    task = build_task(definition, prepared, plan, plan.training.seed)
    algorithm = build_algorithm(task, plan.algorithm)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=plan.training.seed)
    engine = engine_of("loop", algorithm, feed, plan)
    client = prepared.clients[0]
    shared = algorithm.broadcast(algorithm.init())
    steps = feed.steps(client, 0, engine.work)
    result = algorithm.client_update(Round(0, 1, len(prepared.clients)), shared, algorithm.enroll(shared), steps)
    tensors = tuple(
        TensorSpec(name=name, shape=tuple(t.shape), dtype=str(t.dtype).removeprefix("torch."))  # type: ignore[arg-type]
        for name, t in flatten(result.contribution).items()
    )
    return msgspec.structs.replace(plan, contribution=Contribution(scale=plan.contribution.scale, tensors=tensors))
