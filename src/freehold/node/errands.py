"""What agent and guard say to each other; tensors and plans go beside it as sealed memory."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from freehold.errors import by_code
from freehold.events import Event
from freehold.wire.messages import Countersigned, LedgerHead, Measure, Measured, Pending, Settled, Work


class Errand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all errands and answers have."""

    events: list[Event] = []
    """What the guard has to tell beside its answer; it stays on this machine."""
    head: LedgerHead | None = None
    """Beside the guard's answer: where the ledger stands, if the coordinator is to witness it now."""


class Hello(Errand, frozen=True, kw_only=True, tag="hello"):
    """The first errand of a guard: whose it is."""

    node: str
    state: str
    """The node's state folder."""
    datasets: dict[str, str]
    """Name -> path of the table."""
    sandbox: Literal["required", "off"] = "required"
    """Whether trainers run in a sandbox; a node trains without one only if its owner says so."""
    coordinator: str = ""
    """Its URL, for the ledger."""
    policy: str = ""
    """The owner's policy; "" is policy.toml in the state folder."""
    tpm: str = ""
    """TCTI of the TPM that seals the vault's key; "" where none does."""


class Settle(Errand, frozen=True, kw_only=True, tag="settle"):
    """What became of pending rounds; also asked with none, to learn what is pending."""

    settled: list[Settled] = []
    witnessed: Countersigned | None = None


class TrainErrand(Errand, frozen=True, kw_only=True, tag="train"):
    """A round's work. Descriptors: plan, shared, and the bundle that the plan names."""

    run: str
    round: int
    cohort: int
    population: int
    signature: str | None = None
    """Of the plan, as the coordinator has it."""
    left_s: float
    """How long to wait for the trainer before `Busy` is answered; the same errand then goes on waiting."""


class MeasureErrand(Errand, frozen=True, kw_only=True, tag="measure"):
    """Measure the node's own model. Descriptors as for `TrainErrand`."""

    run: str
    round: int
    signature: str | None = None
    left_s: float


class Quit(Errand, frozen=True, kw_only=True, tag="quit"):
    """Give up what a trainer is still busy with."""


class Forget(Errand, frozen=True, kw_only=True, tag="forget"):
    """Erase every personal state of this node."""


class PendingRounds(Errand, frozen=True, kw_only=True, tag="pending"):
    """What is pending now."""

    pending: list[Pending]
    sandbox: str = ""
    """The level that a guard which has just started reached, "off", or "refused: " and why; "" from then on."""
    held: int = 0
    """Attempts to get out of it that were made then, and held."""

    def sandbox_event(self) -> Event:
        """What the node tells of that."""
        if self.sandbox == "off":
            return Event("sandbox.off", {})
        if self.sandbox.startswith("refused"):
            return Event("sandbox.refused", {"why": self.sandbox})
        return Event("sandbox.closed", {"level": self.sandbox, "held": self.held})


class Outgoing(Errand, frozen=True, kw_only=True, tag="outgoing"):
    """What the guard lets out. Descriptor: the contribution as it travels, sealed; digest and length are those of these bytes."""

    weight: float
    compression: Literal["none", "zstd"] = "none"
    sha256: str
    length: int


class OutgoingMeasures(msgspec.Struct, frozen=True, kw_only=True):
    """Sums that the guard lets out."""

    splits: dict[str, Measured]
    alone: dict[str, Measured] = {}
    served: str = ""


class OutgoingMessage(Errand, frozen=True, kw_only=True, tag="message"):
    """Measures as they leave: the body of the message, which the agent sends as it is."""

    body: bytes


class Busy(Errand, frozen=True, kw_only=True, tag="busy"):
    """The trainer has not answered in the time that was left, and works on."""


class Refused(Errand, frozen=True, kw_only=True, tag="refused"):
    """The guard or the trainer would not, or could not; nothing leaves but this."""

    code: int
    message: str
    hint: str = ""


class Erased(Errand, frozen=True, kw_only=True, tag="erased"):
    """The receipt of `Forget`."""

    states: int


BY_TRAINING: Final = frozenset({114, 306, 336, 505, 507})
"""Numbers of errors that training code can bring about as it likes, one or another, with words of its own in them."""

OWNERS_WORD: Final = frozenset({331, 332, 333, 334})
"""Numbers of errors that say what the node's owner has decided, or has not decided yet."""

ToGuard = Hello | Settle | TrainErrand | MeasureErrand | Quit | Forget
FromGuard = PendingRounds | Outgoing | OutgoingMessage | Busy | Refused | Erased


def errand_of(work: Work, *, left_s: float) -> TrainErrand | MeasureErrand:
    """What a guard is asked for a piece of work."""
    if isinstance(work, Measure):
        return MeasureErrand(run=work.run, round=work.round, signature=work.signature, left_s=left_s)
    return TrainErrand(
        run=work.run,
        round=work.round,
        cohort=work.cohort,
        population=work.population,
        signature=work.signature,
        left_s=left_s,
    )


def told(code: int) -> str:
    """What a coordinator hears of an error: a sentence for each number. Its own words, which may quote data, stay here."""
    kind = by_code(code)
    return ((kind.__doc__ or "") if kind else "").split("\n", 1)[0] or f"Error {code}."


def heard(code: int) -> tuple[int, str]:
    """The number and the sentence that leave of an error. Which of its own errors training code chose would be a message."""
    code = 306 if code in BY_TRAINING else code
    return code, told(code)
