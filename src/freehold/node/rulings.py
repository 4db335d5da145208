"""What rules decided, for the owner to see afterwards: one file for each plan under <state>/approvals/rulings, by its digest.

The guard alone writes them, and only what is new: of a plan that rules keep allowing there is one file, written once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from freehold import durable
from freehold.errors import ApprovalError, FreeholdError
from freehold.plan import Plan, digest, dumps, parse
from freehold.policy import Verdict

MOST_KEPT = 50
"""Plans that rules decided, at once: a coordinator cannot fill the disk with more. Those that were never allowed give way first:
plans that are sent to be denied hide none that was allowed. Of the others it is the one that was decided first."""


Unix = Annotated[float, msgspec.Meta(ge=0, lt=2.0**37)]
"""A time that can be shown: what is later is damaged."""


class Ruled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule, as it was found when it decided."""

    rule: str
    passed: bool
    found: str
    wanted: str


class Ruling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rules said of a plan."""

    plan: str
    """As canonical TOML."""
    signature: str | None = None
    says: Literal["allowed", "denied", "waits"]
    """"waits" only after another one: what has waited from the start is the approvals' to keep."""
    decided: Unix
    """Unix time since when they say so."""
    allowed: Unix | None = None
    """Unix time until which they allowed what they do not now; None if they never did. Contributions may have left before it."""
    rules: tuple[Ruled, ...]
    policy: str
    """SHA-256 of the policy that was in force; "" for none."""

    def same(self, other: Ruling) -> bool:
        """Whether nothing is new: what is found may differ, such as the hour, if it passes or fails all the same."""
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self.says, self.policy, tuple((each.rule, each.passed) for each in self.rules)


class Rulings:
    """The folder."""

    def __init__(self, state: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`state`: the node's folder."""
        self.folder, self._clock = state / "approvals" / "rulings", clock
        self._known: dict[str, Ruling] = {}

    def keep(self, verdict: Verdict, plan: Plan, identity: str, signature: str | None, policy: str) -> None:
        """Write down what rules decided, if it is new. What only waited, and what the owner denied, is the approvals' to keep."""
        if verdict.failed and verdict.failed[0].rule == "owner":
            return
        if verdict.says == "waits" and identity not in self._known and self.of(identity) is None:
            return
        rules = tuple(Ruled(rule=f.rule, passed=f.passed, found=f.found, wanted=f.wanted) for f in verdict.findings)
        known, now = self._known.get(identity), self._clock()
        made = Ruling(
            plan="" if known is None else known.plan,
            signature=signature,
            says=verdict.says,
            decided=now,
            rules=rules,
            policy=policy,
        )
        if known is not None and known.same(made):
            return
        if known is None:
            known = self.of(identity)
            made = msgspec.structs.replace(made, plan=dumps(plan))
        if known is None or not known.same(made):
            before = None if known is None else now if known.says == "allowed" else known.allowed
            made = msgspec.structs.replace(made, allowed=None if made.says == "allowed" else before)
            self._write(identity, made)
            known = made
        if len(self._known) >= MOST_KEPT:
            self._known.clear()
        self._known[identity] = known

    def of(self, identity: str) -> Ruling | None:
        """What rules said of the plan of this digest last; None if they never did, or what they said is damaged."""
        path = self.folder / f"{identity.removeprefix('sha256:')}.json"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Ruling)
            whole = digest(parse(found.plan)) == f"sha256:{path.stem}"
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, FreeholdError):
            return None
        return found if whole else None

    def entries(self) -> list[tuple[str, Ruling]]:
        """(digest, ruling) of all that are whole, what was decided first comes first."""
        found = [(f"sha256:{path.stem}", self.of(path.stem)) for path in self.folder.glob("*.json")]
        whole = [(identity, ruling) for identity, ruling in found if ruling is not None]
        return sorted(whole, key=lambda each: (each[1].decided, each[0]))

    def _worth(self, path: Path) -> tuple[bool, float]:
        """What gives way first comes first: what is damaged, what was never allowed, what was decided long ago."""
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Ruling)
        except (OSError, ValueError, msgspec.MsgspecError):
            return False, 0.0
        return found.says == "allowed" or found.allowed is not None, found.decided

    def _write(self, identity: str, ruling: Ruling) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / f"{identity.removeprefix('sha256:')}.json"
            paths = [each for each in self.folder.glob("*.json") if each != path]
            excess = len(paths) + 1 - MOST_KEPT
            for each in sorted(paths, key=self._worth)[:excess] if excess > 0 else ():
                self._known.pop(f"sha256:{each.stem}", None)  # asked for again, it is written again
                with contextlib.suppress(FileNotFoundError):
                    each.unlink()
            durable.write(path, msgspec.json.encode(ruling), point="node.ruling")
        except OSError as error:
            raise ApprovalError(
                f"{self.folder} cannot be written: {error.strerror}.", hint="Make room on the disk; nothing is done until then."
            ) from error
