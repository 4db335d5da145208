"""The privacy budget: what all studies together have done to a data set, kept so that a crash never counts too little.

<state>/budget/budget.json: for each data set and study the kinds of noise that were added, and how often, since ε does not add
up but noise composes. A round is `open` from before its training, on the disk; once its contribution is about to leave it is
`spent`; open ones count like spent ones. The file is signed by the ledger's key, and says where the ledger stood; each line of
the ledger says which file was current. So a file that was changed, lost or put back is noticed, and refused, never reset.
It also says which state of the vault was current, for the vault's sake.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from freehold import durable
from freehold.errors import BudgetDamaged, BudgetExceeded, LedgerError
from freehold.node.ledger import Ledger
from freehold.node.lines import Head, is_sealed
from freehold.privacy.accounting import Mechanism, epsilon

FORMAT = 1
FILE = "budget.json"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner allows on a data set. None: no limit, and what has no noise may leave."""

    epsilon_total: float | None = None
    """Over all studies."""
    epsilon_per_study: float | None = None
    delta: float = 1e-5


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """ε so far, inf where something left without noise."""

    study: float
    total: float
    delta: float


class Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What one study did to a data set with one kind of noise; its mechanism's `count` is that of a round."""

    plan: str
    unit: str
    mechanism: Mechanism | None
    """None: no noise."""
    spent: int = 0
    """Rounds whose contribution was let out."""
    open: list[str] = []
    """Rounds, as "run:round", that are being trained."""
    done: dict[str, int] = {}
    """Run -> how many of its rounds were begun, each counted once."""

    @property
    def rounds(self) -> int:
        """That count."""
        return self.spent + len(self.open)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A round that is to be opened."""

    dataset: str
    plan: str
    """Its digest."""
    run: str
    round: int
    ordinal: int
    """How many rounds of the run have trained before it."""
    rounds: int
    """How many a run trains in all, as far as the plan says."""
    runs: int
    """Of the plan: its algorithm and companions, in all repeats."""
    unit: str
    mechanism: Mechanism | None
    """The noise of one round."""
    limits: Limits = Limits()

    @property
    def key(self) -> str:
        """As an entry names it."""
        return f"{self.run}:{self.round}"


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: int = FORMAT
    ledger_n: int = 0
    ledger_hash: str = ""
    writes: int = 0
    vault: str | None = None
    sets: dict[str, list[Entry]] = {}


class Anchor(NamedTuple):
    """What a vault is tied to."""

    budget: str | None
    """The digest of the budget as it is now; None before the first."""
    vault: str | None
    """The vault that it names; None where it was written before vaults were named."""


def no_vault() -> str | None:
    """Where there is no vault to name."""
    return None


class Budget:
    """The budget of one node; every method that changes something returns once it is on the disk."""

    def __init__(self, folder: Path, ledger: Ledger, vault: Callable[[], str | None] = no_vault) -> None:
        """Open it, or begin it where the ledger knows of none; BudgetDamaged for a file that is not the one it was.

        `vault` names the vault as it is on the disk; each write asks it.
        """
        self._path, self._ledger, self._vault = folder / FILE, ledger, vault
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            body = self._path.read_bytes() if self._path.exists() else None
        except OSError as error:
            raise _unwritable(folder, error) from None
        self.digest, self._file = self._read(body)
        self._text = msgspec.json.encode(self._file)
        self.ahead = self.digest != ledger.last.budget
        """Whether it was written after the ledger's last line."""
        for entry in [each for entries in self._file.sets.values() for each in entries]:
            entry.open = []  # whoever trained them is gone, and nothing left: it would have been counted before

    def _read(self, body: bytes | None) -> tuple[str | None, _File]:
        last = self._ledger.last.budget
        if body is None:
            if last is not None:
                raise _damaged(self._path, "is gone, but the ledger knows of one")
            return None, _File()
        digest, found = _parsed(self._path, body, self._ledger.key.public)
        if digest != last and Head(found.ledger_n, found.ledger_hash) != self._ledger.head:
            raise _damaged(self._path, "is not the newest: it, or the ledger, was put back to an earlier state")
        return digest, found

    def reserve(self, ask: Ask) -> None:
        """Open a round before its training.

        Raises BudgetExceeded, and opens nothing, where the study to its end, beside what is spent already, would overdraw.
        """
        entries = self._file.sets.get(ask.dataset, [])
        kind = (ask.plan, ask.mechanism, ask.unit)
        entry = next((e for e in entries if (e.plan, e.mechanism, e.unit) == kind), None)
        if entry is None:
            entry = Entry(plan=ask.plan, unit=ask.unit, mechanism=ask.mechanism, open=[], done={})
            entries = [*entries, entry]
        if ask.key in entry.open:
            return  # it was never let out, or it would be spent
        begun = entry.done.get(ask.run, 0)
        left = ask.runs * ask.rounds - sum(min(n, ask.rounds) for n in entry.done.values())
        rounds = entry.rounds + max(left + (ask.ordinal < begun), 1)
        others = [e for e in entries if e is not entry]
        self._check(ask, [e for e in others if e.plan == ask.plan], rounds, ask.limits.epsilon_per_study, "this study")
        self._check(ask, others, rounds, ask.limits.epsilon_total, "all studies together")
        self._file.sets[ask.dataset] = entries
        entry.open = [*entry.open, ask.key]
        entry.done = {**entry.done, ask.run: max(begun, ask.ordinal + 1)}
        self._write()
        self.spent(ask.dataset, ask.plan, ask.limits.delta)  # it is kept: once trained, nothing waits for it

    def _check(self, ask: Ask, others: Sequence[Entry], rounds: int, most: float | None, whose: str) -> None:
        if most is None:
            return
        delta = ask.limits.delta
        mine = Entry(plan=ask.plan, unit=ask.unit, mechanism=ask.mechanism, spent=rounds)
        found = composed([*others, mine], delta)
        if found > most:
            taken = (
                f", and other plans have taken {_said(composed(others, delta))}"
                if any(e.plan != ask.plan for e in others)
                else ""
            )
            raise BudgetExceeded(
                f"With its rounds to the end, {whose} would cost {_said(found)} on {ask.dataset}, at δ = {delta:g}; the owner "
                f"allows ε = {most:g}{taken}.",
                hint="More noise or fewer rounds in the plan cost less; only the data's owner can allow more, in the policy.",
            )

    def release(self, ask: Ask) -> None:
        """Close a round of which nothing left."""
        if self._close(ask) is not None:
            self._write()

    def spend(self, ask: Ask) -> Spent:
        """Count an open round, before its contribution leaves; ε so far with it."""
        entry = self._close(ask)
        if entry is None:
            raise BudgetDamaged(
                f"Round {ask.round} of {ask.run} was not reserved before it was trained.",
                hint="This is a defect; nothing was sent.",
            )
        entry.spent += 1
        self._write()
        return self.spent(ask.dataset, entry.plan, ask.limits.delta)

    def spent(self, dataset: str, plan: str, delta: float) -> Spent:
        """ε of a data set as it counts now, in all and of one study."""
        entries = self._file.sets.get(dataset, [])
        return Spent(study=composed([e for e in entries if e.plan == plan], delta), total=composed(entries, delta), delta=delta)

    def entries(self) -> dict[str, list[Entry]]:
        """Data set -> what was done to it."""
        return self._file.sets

    @property
    def anchor(self) -> Anchor:
        """As it lies on the disk."""
        return Anchor(self.digest, self._file.vault)

    def name_vault(self) -> None:
        """Write down which vault is current, outside of a round."""
        self._write()

    def _close(self, ask: Ask) -> Entry | None:
        for entry in self._file.sets.get(ask.dataset, []):
            if ask.key in entry.open:
                entry.open = [each for each in entry.open if each != ask.key]
                return entry
        return None

    def _write(self) -> None:
        file = self._file
        file.vault = self._vault() or file.vault
        file.ledger_n, file.ledger_hash = self._ledger.head
        file.writes += 1
        text = msgspec.json.encode(file, order="sorted")
        try:
            durable.write(self._path, text + b"\n" + self._ledger.key.seal(text).encode() + b"\n", point="node.budget")
        except OSError as error:
            self._file = msgspec.json.decode(self._text, type=_File)  # as it is on the disk
            raise _unwritable(self._path.parent, error) from None
        self._text, self.digest = text, hashlib.sha256(text).hexdigest()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A budget that was read by somebody else than the guard."""

    digest: str
    ledger: Head
    """Where the ledger stood when it was written."""
    sets: dict[str, list[Entry]]


def read(folder: Path, public: str) -> Kept | None:
    """The budget in `folder` as it is now, None if there is none yet; BudgetDamaged if this key did not sign it."""
    path = folder / FILE
    try:
        body = path.read_bytes() if path.exists() else None
    except OSError as error:
        raise _unwritable(folder, error) from None
    if body is None:
        return None
    digest, found = _parsed(path, body, public)
    return Kept(digest=digest, ledger=Head(found.ledger_n, found.ledger_hash), sets=found.sets)


def _parsed(path: Path, body: bytes, public: str) -> tuple[str, _File]:
    text, _, signature = body.rstrip(b"\n").rpartition(b"\n")
    try:
        found = msgspec.json.decode(text, type=_File)
    except (ValueError, msgspec.MsgspecError):
        raise _damaged(path, "was changed: it cannot be read") from None
    if not is_sealed(text, signature.decode("ascii", "replace"), public):
        raise _damaged(path, "was changed: its signature is not this node's")
    return hashlib.sha256(text).hexdigest(), found


def _damaged(path: Path, what: str) -> BudgetDamaged:
    return BudgetDamaged(
        f"The privacy budget {path} {what}.",
        hint="Restore budget/ and ledger/ from the same, newest backup. Nothing leaves before; it is never set back to zero.",
    )


def composed(entries: Sequence[Entry], delta: float) -> float:
    """ε of all of them together, inf where something had no noise; rounds that are open count."""
    counted = [(e.mechanism, e.rounds) for e in entries if e.rounds]
    if any(mechanism is None for mechanism, _ in counted):
        return math.inf
    try:
        return epsilon([m.times(m.count * rounds) for m, rounds in counted if m is not None], delta)
    except (ArithmeticError, ValueError, MemoryError):  # so little noise that its distribution of losses does not fit into memory
        return math.inf


def _said(value: float) -> str:
    return "no ε at all, since it adds no noise" if math.isinf(value) else f"ε = {value:.3g}"


def _unwritable(folder: Path, error: OSError) -> LedgerError:
    return LedgerError(
        f"The privacy budget in {folder} cannot be used: {error.strerror or type(error).__name__}.",
        hint="Make room on the disk and look at the folder's owner and mode; nothing was sent.",
    )
