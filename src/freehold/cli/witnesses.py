"""What is known of a node's ledger from elsewhere than its lines: by its budget, its checkpoint, and its coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from freehold.errors import CheckpointRefused, NotJoined, UsageError

if TYPE_CHECKING:
    from freehold.wire.messages import Countersigned

LOST = "The privacy budget is gone, though contributions have left by the ledger."


class Checkpoint(TypedDict):
    """One, as it is shown: the line, its digest, the ledger's key, and the coordinator's time."""

    n: int
    hash: str
    key: str
    time: float


@dataclass(kw_only=True)
class Known:
    """What a ledger is held against."""

    key: str | None = None
    """The public key that it must have; None: any."""
    lines: dict[int, str] = field(default_factory=dict)
    """Number -> digest."""
    budget: str = ""
    """What is wrong with the budget; "": nothing."""
    checkpoint: Checkpoint | None = None
    fault: str = ""
    """What is wrong with the checkpoint."""
    notes: list[str] = field(default_factory=list)
    control: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Control messages that have left and are in no line yet: kind -> how many, bytes."""

    def take(self, found: Countersigned, roots: str, node: str | None) -> None:
        """Add what a checkpoint says; the furthest one is shown."""
        from freehold.node.checkpoints import check

        try:
            vouched = check(found, roots, node=node)
        except CheckpointRefused as error:
            self.fault = error.message
            return
        if vouched is None or found.head is None:
            return
        n, digest = vouched
        if self.lines.get(n, digest) != digest:
            self.fault = f"The coordinator has witnessed another line {n} than is known here."
            return
        self.lines[n] = digest
        self.key = found.head.key
        if self.checkpoint is None or self.checkpoint["n"] <= n:
            self.checkpoint = Checkpoint(n=n, hash=digest, key=found.head.key, time=found.time)


def ledger_in(folder: Path | None) -> Path:
    """The file with the lines."""
    from freehold.node.ledger import FILE

    assert folder is not None
    return folder / FILE


def given(file: Path | None, ca: Path | None) -> Known:
    """What a checkpoint says that was given as a file."""
    from freehold.node.checkpoints import parse

    known = Known()
    if file is not None and ca is not None:
        try:
            body, roots = file.read_bytes(), ca.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{file} or {ca} cannot be read ({type(error).__name__}).", hint="--checkpoint is JSON, --ca is PEM."
            ) from None
        known.take(parse(body), roots, None)
    return known


def own(folder: Path, ca: Path | None, *, ask: bool) -> Known:
    """What is known of the ledger in a node's own folder; `ask` its coordinator, too."""
    from freehold.node import checkpoints, control
    from freehold.node.lines import public_key

    known = Known(key=public_key(folder), control=control.waiting(folder.parent))
    try:
        roots = ca.read_text(encoding="ascii") if ca is not None else checkpoints.roots_of(folder.parent)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"{ca} cannot be read: {why}.", hint="Give the federation's roots, in PEM.") from None
    except NotJoined:
        roots = ""
    if ca is not None and not roots.strip():
        raise UsageError(f"{ca} is empty.", hint="Give the federation's roots, in PEM.")
    try:
        kept = checkpoints.load(folder)
    except CheckpointRefused as error:
        kept, known.fault = None, error.message
    before = known.key
    if kept is not None and roots:
        known.take(kept, roots, None)
    elif kept is not None and kept.head is not None:
        known.notes.append("The node has left, and its checkpoint cannot be held against roots; give --ca.")
        known.key, known.lines[kept.head.n] = kept.head.key, kept.head.hash
    if ask:
        known.take(_asked(folder.parent), roots, _name(folder.parent))
    if before is not None and known.key != before:
        known.notes.append("key.pem holds another key than the checkpoint names; the ledger was held against the latter.")
    _from_budget(folder, known)
    return known


def _from_budget(folder: Path, known: Known) -> None:
    from freehold.errors import BudgetDamaged
    from freehold.node.budget import read

    if known.key is None:
        return
    try:
        kept = read(folder.parent / "budget", known.key)
        if kept is None and _names_a_budget(folder):
            known.budget = f"{LOST} Restore budget/ and ledger/ from the same, newest backup."
    except BudgetDamaged as error:
        kept, known.budget = None, error.message
    if kept is not None and kept.ledger.n and known.lines.setdefault(*kept.ledger) != kept.ledger.hash:
        known.budget = f"The privacy budget knows another line {kept.ledger.n} than the coordinator has witnessed."


def needs_budget(folder: Path) -> None:
    """Raises BudgetDamaged where there is no budget, though the ledger in `folder` names one: nothing spent would be a lie."""
    from freehold.errors import BudgetDamaged

    if _names_a_budget(folder):
        raise BudgetDamaged(LOST, hint="Restore budget/ and ledger/ from the same, newest backup. Nothing leaves before.")


def _names_a_budget(folder: Path) -> bool:
    from freehold.errors import LedgerError
    from freehold.node.audit import entries

    try:
        return any(line.kind == "contribution" for line in entries(folder))
    except LedgerError:  # verify says what is wrong with it
        return False


def _asked(state: Path) -> Countersigned:
    """The coordinator's latest; raises what a connection does."""
    from freehold.node import credentials
    from freehold.node.control import Control
    from freehold.wire.client import Connection, trusting
    from freehold.wire.messages import Countersigned, decode
    from freehold.wire.routes import CHECKPOINT

    found = credentials.load(state)
    trust = trusting(found.roots.read_text(encoding="ascii"), found.files)
    connection = Connection(found.membership.url, trust, meter=Control(state))
    try:
        return decode(connection.get(CHECKPOINT.path), Countersigned)
    finally:
        connection.close()


def _name(state: Path) -> str:
    from freehold.node import credentials

    return credentials.load(state).membership.node
