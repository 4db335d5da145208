"""A node leaves for good: the coordinator revokes its certificate, and what it kept is erased if its owner wants that."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from freehold import durable
from freehold.errors import Denied, NodeError
from freehold.node import credentials
from freehold.node.control import Control
from freehold.node.errands import Erased, Forget, FromGuard, Hello
from freehold.settings import only_one
from freehold.wire.client import Connection, trusting
from freehold.wire.local import close
from freehold.wire.messages import Leave, WorkReply
from freehold.wire.process import Child, Spawn, spawn
from freehold.wire.routes import LEAVE


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What leaving did; also <state>/left.json."""

    node: str
    federation: str
    coordinator: str
    left: float
    """Unix time at which the coordinator confirmed it."""
    erased_states: int | None
    """Personal states that were deleted; None where they were kept."""


def leave(state: Path, *, erase: bool, spawn: Spawn = spawn) -> Receipt:
    """Leave the federation. Raises NotJoined, Unreachable, and UsageError while the node runs; then nothing has changed.

    A node that is denied has left as far as the coordinator goes: who was killed on the way, or was denied, leaves all the same.
    """
    found = credentials.load(state)
    member = found.membership
    with only_one(state, "node"):
        connection = Connection(member.url, trusting(found.roots.read_text(encoding="ascii"), found.files), meter=Control(state))
        try:
            with contextlib.suppress(Denied):
                connection.post(LEAVE.path, Leave(), WorkReply)
        finally:
            connection.close()
        receipt = Receipt(
            node=member.node,
            federation=member.federation,
            coordinator=member.url,
            left=time.time(),
            erased_states=_erased(state, member, spawn) if erase else None,
        )
        durable.write(state / "left.json", (json.dumps(asdict(receipt)) + "\n").encode(), point="node.left")
        shutil.rmtree(state / "identity")  # of no use to anybody any more
        if erase:
            for copied in ("studies", "columns"):  # sums over records, and copies of them
                shutil.rmtree(state / copied, ignore_errors=True)
    return receipt


def _erased(state: Path, member: credentials.Membership, spawn: Spawn) -> int:
    def greet(child: Child) -> None:
        _, fds = child.ask(
            Hello(node=member.node, state=str(state), datasets={}, coordinator=member.url), timeout_s=60.0, restarts=0
        )
        close(fds)

    guard = Child("freehold.node.guard", FromGuard, spawn=spawn, opening=greet)
    try:
        reply, fds = guard.ask(Forget(), timeout_s=600.0)
        close(fds)
    finally:
        guard.end()
    if not isinstance(reply, Erased):
        raise NodeError(
            "The guard could not erase the vault.", hint=f"Delete vault/ and vault.key in {state} by hand; the node has left."
        )
    return reply.states
