"""Whether a node may train: what the machine offers, tried anew at each start, and refused when one attempt gets through."""

from __future__ import annotations

from dataclasses import dataclass

from freehold.errors import SandboxEscaped, SandboxMissing
from freehold.sandbox.escapes import Outcome, run
from freehold.sandbox.probe import Offer, probe
from freehold.sandbox.trainer_user import trainer_uid


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What a self-test found."""

    offer: Offer
    outcomes: list[Outcome]
    """None at level "none"."""

    @property
    def escaped(self) -> list[Outcome]:
        """The attempts that got through."""
        return [outcome for outcome in self.outcomes if outcome.result == "escaped"]


def assess(seed: str) -> Assessment:
    """Probe, and try every attempt at the level that is there. `seed`: of the trainer's user, one a node. Raises OSError."""
    offer = probe(trainer_uid(seed))
    return Assessment(offer=offer, outcomes=[] if offer.level == "none" else run(offer.jail()))


def require(found: Assessment) -> Offer:
    """What the jail is built from; raises SandboxMissing or SandboxEscaped."""
    if found.offer.level == "none":
        raise SandboxMissing(
            f"This machine offers no sandbox for training code: {'; '.join(found.offer.why)}.",
            hint="See docs/how-to/sandbox.md. --insecure-no-sandbox trains without one, and trusts every plan with this machine.",
        )
    if found.escaped:
        names = ", ".join(f"{outcome.name} ({outcome.why or 'got through'})" for outcome in found.escaped)
        raise SandboxEscaped(
            f"The sandbox (level {found.offer.level}) does not hold here: {names}. The node does not train.",
            hint="`freehold doctor --sandbox` shows every attempt. Please report it, with the kernel's version.",
        )
    return found.offer
