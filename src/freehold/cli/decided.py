"""The plans that a node keeps: what waits, what its owner said, and what rules decided."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from freehold.errors import UnknownName, UsageError
from freehold.node.approvals import Approvals
from freehold.node.rulings import Rulings
from freehold.plan import Plan, parse

if TYPE_CHECKING:
    from freehold.node.approvals import Entry
    from freehold.node.rulings import Ruling


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One plan."""

    digest: str
    plan: Plan
    signature: str | None
    state: Literal["waits", "approved", "allowed", "denied"]
    by: Literal["", "owner", "rules"]
    """Who decided; "" while it waits."""
    since: float
    """Unix time, since when it is so."""
    reason: str = ""
    ruling: Ruling | None = None
    """What rules said last, also of a plan of which the owner said something."""

    def told(self) -> dict[str, Any] | None:
        """What rules decided, as JSON has it; None: the owner did."""
        ruling = self.ruling
        if ruling is None:
            return None
        rules = [{"rule": e.rule, "passed": e.passed, "found": e.found, "wanted": e.wanted} for e in ruling.rules]
        told = {"says": ruling.says, "time": ruling.decided, "policy": ruling.policy, "rules": rules}
        return told if ruling.allowed is None else {**told, "allowed_until": ruling.allowed}


def every(folder: Path) -> list[Decided]:
    """All that this node keeps, the oldest first."""
    entries, rulings = dict(Approvals(folder).entries()), dict(Rulings(folder).entries())
    found = [_decided(each, entries.get(each), rulings.get(each)) for each in {**entries, **rulings}]
    return sorted(found, key=lambda each: (each.since, each.digest))


def find(folder: Path, text: str) -> Decided:
    """The one whose digest begins so, or whose plan is called so. Raises UnknownName and UsageError."""
    start = text.removeprefix("sha256:")
    known = every(folder)
    found = [each for each in known if re.fullmatch(r"[0-9a-f]{4,64}", start) and each.digest.startswith(f"sha256:{start}")]
    found = found or [each for each in known if each.plan.name == text]
    if not found:
        raise UnknownName(
            f"No plan {text[:80]} is here.",
            hint="`freehold node pending --all` lists the plans that wait or were decided; the oldest give way to new ones.",
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} plans are called {text[:80]}.", hint="Give the digest.")
    return found[0]


def _decided(identity: str, entry: Entry | None, ruling: Ruling | None) -> Decided:
    if entry is not None and (entry.state != "waits" or ruling is None or ruling.decided < entry.since):
        by: Literal["", "owner", "rules"] = "" if entry.state == "waits" else "owner"
        return Decided(
            digest=identity,
            plan=parse(entry.plan),
            signature=entry.signature,
            state=entry.state,
            by=by,
            since=entry.since if entry.decided is None else entry.decided,
            reason=entry.reason,
            ruling=ruling,
        )
    assert ruling is not None
    return Decided(
        digest=identity,
        plan=parse(ruling.plan),
        signature=ruling.signature,
        state=ruling.says,
        by="" if ruling.says == "waits" else "rules",
        since=ruling.decided,
        ruling=ruling,
    )
