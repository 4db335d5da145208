"""A plan with the list of what its algorithms send, as the process that runs their server code tells it."""

from __future__ import annotations

import msgspec

from freehold.coordinator.child import ServerCode
from freehold.errors import StudyRefused
from freehold.plan import Plan, dumps
from freehold.plan.bundle import unpack
from freehold.sandbox.starting import for_foreign_code
from freehold.wire.process import Spawn, spawn


def specified(plan: Plan, bundle: bytes | None = None, *, spawn: Spawn = spawn) -> Plan:
    """The plan with the tensors of its algorithm and of each companion; raises ServerCodeFailed where they cannot be built.

    `bundle`: the code that the plan names, which runs in a sandbox here.
    """
    code = ServerCode(spawn=spawn, sandboxed=lambda: for_foreign_code("specification"))
    try:
        found = code.describe(dumps(plan).encode(), bundle)
    finally:
        code.end()
    companions = [msgspec.structs.replace(c, tensors=t) for c, t in zip(plan.companions, found[1:], strict=True)]
    contribution = msgspec.structs.replace(plan.contribution, tensors=found[0])
    return msgspec.structs.replace(plan, contribution=contribution, companions=tuple(companions))


def check_bundle(plan: Plan, bundle: bytes | None) -> None:
    """Raise StudyRefused unless the bundle is there exactly if the plan names one, and BundleUnfit if it is another one."""
    if (plan.task.bundle is None) != (bundle is None):
        there = "names a bundle, which did not come" if bundle is None else "names no bundle, and one came"
        raise StudyRefused(f"The plan {there}.", hint="Give --bundle FILE with a plan that has task.bundle, and only then.")
    if plan.task.bundle is not None and bundle is not None:
        unpack(bundle, plan.task.bundle)
