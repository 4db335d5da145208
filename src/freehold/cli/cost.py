"""What a plan would cost a node's data: its ε to the end, and what the budget adds to it for other studies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from freehold.errors import FreeholdError

if TYPE_CHECKING:
    from freehold.plan import Plan
    from freehold.policy import DataRules


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a plan, to its end."""

    epsilon: float | None
    """Companions and repeats included, and what of it left already.

    None: the plan promises nothing, or nobody here knows how many records there are."""
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
    known = kept.sets.get(plan.task.name, []) if kept else []
    identity, mechanism = digest(plan), mechanism_of(plan, records or 1)
    entry = Entry(plan=identity, unit=plan.privacy.unit, mechanism=mechanism)
    before = next((e for e in known if (e.plan, e.mechanism, e.unit) == (identity, mechanism, entry.unit)), entry)
    # What left already counts, also where rounds were asked for twice, or with other records: as when the next one is reserved.
    cycles = max([1, *(math.ceil(begun / plan.training.rounds) for begun in before.done.values())])
    left = len(runs_of(plan)) * plan.training.rounds * cycles - sum(before.done.values())
    mine = [e for e in known if e.plan == identity and e is not before]
    mine.append(msgspec.structs.replace(entry, spent=before.rounds + left))
    others = [each for each in known if each.plan != identity]
    epsilon = composed(mine, delta)
    spent = composed([*others, *mine], delta) - epsilon if others and epsilon < float("inf") else 0.0
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
