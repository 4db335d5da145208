"""The runs of a plan on a federation: its algorithm and each companion, repeated with other seeds."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from freehold.plan.spec import Contribution
from freehold.plan.tables import AlgorithmRef, Plan
from freehold.plan.text import digest


@dataclass(frozen=True, kw_only=True)
class Run:
    """One algorithm, one seed."""

    id: str
    """The first 16 digits of the plan's digest, and `number`."""
    number: int
    algorithm: AlgorithmRef
    contribution: Contribution
    """All that may leave a node in a round of this run."""
    repeat: int
    seed: int


def runs_of(plan: Plan) -> tuple[Run, ...]:
    """Repeat by repeat: the plan's algorithm first, then its companions."""
    start = digest(plan).removeprefix("sha256:")[:16]
    kinds = [(plan.algorithm, plan.contribution)]
    kinds += [(c, msgspec.structs.replace(plan.contribution, tensors=c.tensors)) for c in plan.companions]
    return tuple(
        Run(
            id=f"{start}-{repeat * len(kinds) + kind}",
            number=repeat * len(kinds) + kind,
            algorithm=algorithm,
            contribution=contribution,
            repeat=repeat,
            seed=plan.training.seed + repeat,
        )
        for repeat in range(plan.repeats)
        for kind, (algorithm, contribution) in enumerate(kinds)
    )
