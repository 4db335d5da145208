"""What a data owner said of plans, one file for each under <state>/approvals, named by the plan's digest.

The guard writes what waits; `freehold node approve|deny` writes what the owner says, and the running guard
reads it at each piece of work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from freehold import durable
from freehold.errors import ApprovalError, FreeholdError, UnknownName
from freehold.plan import Plan, digest, dumps, parse

MOST_WAITING = 50
"""Plans that wait at once: a coordinator cannot fill the disk with more. The one that waits longest gives way."""

NOTED = "decisions.noted"
"""Plan -> when what the owner said of it was decided, of what is in the ledger."""

State = Literal["waits", "approved", "denied"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan, and what became of it."""

    plan: str
    """As canonical TOML."""
    signature: str | None = None
    since: Annotated[float, msgspec.Meta(ge=0)]
    """Unix time of the first piece of work."""
    state: State = "waits"
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    decided: float | None = None


class Approvals:
    """The folder. Every method that changes something returns once it is on the disk."""

    def __init__(self, state: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`state`: the node's folder."""
        self.folder, self._clock = state / "approvals", clock
        self._looked: dict[str, int] = {}

    def state_of(self, identity: str) -> Literal["", "approved", "denied"]:
        """What the owner said of the plan of this digest. Raises ApprovalError for an entry that is damaged."""
        found = self._read(self._path(identity))
        return "" if found is None or found.state == "waits" else found.state

    def wait(self, plan: Plan, identity: str, signature: str | None) -> bool:
        """Have a plan wait for the owner; whether it is new here."""
        path = self._path(identity)
        if path.exists():
            return False
        with _explained(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            waiting = sorted((e.since, key) for key, e in self.entries() if e.state == "waits")
            for _, key in waiting[: max(len(waiting) + 1 - MOST_WAITING, 0)]:
                self._path(key).unlink(missing_ok=True)
            entry = Entry(plan=dumps(plan), signature=signature, since=self._clock())
            durable.write(path, msgspec.json.encode(entry), point="node.waiting")
        return True

    def say(self, identity: str, state: Literal["approved", "denied"], reason: str = "") -> Entry:
        """Write down what the owner says of a plan that is here."""
        path = self._path(identity)
        found = self._read(path)
        if found is None:
            raise UnknownName(f"No plan {identity} is here.", hint="`freehold node pending` lists what waits.")
        entry = msgspec.structs.replace(found, state=state, reason=reason, decided=self._clock())
        with _explained(self.folder):
            durable.write(path, msgspec.json.encode(entry), point="node.approval")
        return entry

    def keep(self, plan: Plan, signature: str | None) -> str:
        """Take up a plan that the owner has as a file, before any coordinator asks for it; its digest."""
        identity = digest(plan)
        self.wait(plan, identity, signature)
        return identity

    def entries(self) -> list[tuple[str, Entry]]:
        """(digest, entry) of all that are whole, those that waited first come first."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(ApprovalError):
                if (entry := self._read(path)) is not None:
                    found.append((f"sha256:{path.stem}", entry))
        return sorted(found, key=lambda each: (each[1].since, each[0]))

    def tell(self, note: Callable[..., object]) -> None:
        """Have `note` write each decision that it has not written yet into the ledger; one may come twice after a crash."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                version = path.stat().st_mtime_ns
                if self._looked.get(path.name) == version:
                    continue
                entry = self._read(path)
            except (OSError, ApprovalError):
                continue
            if entry is not None and entry.decided is not None and (noted := self._noted()).get(path.stem) != entry.decided:
                note(
                    "approval",
                    entry.reason,
                    plan=f"sha256:{path.stem}",
                    study=parse(entry.plan).name,
                    verdict=entry.state,
                )
                with _explained(self.folder):
                    told = msgspec.json.encode({**noted, path.stem: entry.decided})
                    durable.write(self.folder / NOTED, told, point="node.noted")
            self._looked[path.name] = version

    def _noted(self) -> dict[str, float]:
        try:
            return msgspec.json.decode((self.folder / NOTED).read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError):
            return {}

    def last_approved(self, name: str, *, but: str) -> Plan | None:
        """The plan of this name that was approved last, leaving out that of digest `but`."""
        found = [
            (entry.decided or 0.0, key, plan)
            for key, entry in self.entries()
            if entry.state == "approved" and key != but and (plan := parse(entry.plan)).name == name
        ]
        return max(found, key=lambda each: each[:2])[2] if found else None

    def last_bundled(self, data: str, *, but: str) -> Plan | None:
        """The plan that was approved last of those that bring code for this data, leaving out that of digest `but`."""
        found = [
            (entry.decided or 0.0, key, plan)
            for key, entry in self.entries()
            if entry.state == "approved" and key != but and (plan := parse(entry.plan)).task.name == data and plan.task.bundle
        ]
        return max(found, key=lambda each: each[:2])[2] if found else None

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity.removeprefix('sha256:')}.json"

    def _read(self, path: Path) -> Entry | None:
        """The entry in a file; what it holds must be the plan whose digest it is named by."""
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ApprovalError(f"{path} cannot be read: {error.strerror}.", hint="Check its owner and mode.") from None
        try:
            entry = msgspec.json.decode(body, type=Entry)
            whole = digest(parse(entry.plan)) == f"sha256:{path.stem}"
        except (msgspec.MsgspecError, UnicodeDecodeError, FreeholdError):
            whole = False
        if not whole:
            raise ApprovalError(
                f"{path} is damaged: it is not the plan that it is named by.", hint="Delete it; the plan waits anew."
            )
        return entry


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ApprovalError(
            f"{folder} cannot be written: {error.strerror}.",
            hint="Make room on the disk, and look at the folder's owner and mode.",
        ) from error
