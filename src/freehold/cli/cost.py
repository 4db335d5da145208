"""What a plan would cost a node's data: its ε to the end, and what the budget adds to it for other studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import FreeholdError

if TYPE_CHECKING:
    from freehold.plan import Plan
    from freehold.policy import DataRules


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a plan, to its end."""

    epsilon: float | None
    """Companions and repeats included; None: the plan promises nothing, or nobody here knows how many records there are."""
    spent: float = 0.0
    """ε that other plans add to it."""
    records: int | None = None
    """Training records on which it rests; None where it rests on none."""


def cost_of(folder: Path | None, plan: Plan, rules: DataRules | None, records: int | None = None) -> Cost:
    """What the node in this folder would be charged; None: one without a past. `records`: counted in its data if not given."""
    if plan.privacy.unit == "none":
        return Cost(epsilon=None)
    if plan.privacy.unit == "record":
        records = _records(folder, plan) if records is None else records
        if records is None:
            return Cost(epsilon=None)
    from freehold.node.budget import Entry, Limits, composed, read
    from freehold.node.lines import public_key
    from freehold.plan import digest, runs_of
    from freehold.privacy import mechanism_of

    delta = min(plan.privacy.delta, (rules.delta if rules else None) or Limits().delta)  # as the guard counts it
    kept = None if folder is None else read(folder / "budget", public_key(folder / "ledger") or "")
    others = [each for each in (kept.sets.get(plan.task.name, []) if kept else []) if each.plan != digest(plan)]
    rounds = plan.training.rounds * len(runs_of(plan))
    mine = Entry(plan=digest(plan), unit=plan.privacy.unit, mechanism=mechanism_of(plan, records or 1), spent=rounds)
    epsilon = composed([mine], delta)
    spent = composed([*others, mine], delta) - epsilon if others and epsilon < float("inf") else 0.0
    return Cost(epsilon=epsilon, spent=spent, records=records if plan.privacy.unit == "record" else None)


def _records(folder: Path | None, plan: Plan) -> int | None:
    """Training records of this node, in the split that has the fewest, as its trainer would say; None where nobody can tell.

    Code that comes with a plan is not run to find out.
    """
    if folder is None or plan.task.bundle is not None:
        return None
    from freehold.node.admission import tables
    from freehold.node.program import Program, load

    path = tables(folder).get(plan.task.name)
    try:
        return None if path is None else Program(plan, "here", load(plan, "here", path)).training()
    except FreeholdError:
        return None
