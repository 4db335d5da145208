"""What an agent sends to its coordinator: contributions and measures, byte for byte as the guard made them, and control messages.

The first two are in the ledger as lines of their own; all others are counted, see `node.control`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from freehold.failpoints import failpoint
from freehold.node.control import Control
from freehold.node.errands import Outgoing
from freehold.wire.client import Connection
from freehold.wire.local import Memory, Pieces
from freehold.wire.messages import (
    MOST_PENDING,
    Blob,
    Declined,
    LedgerHead,
    Measure,
    Pending,
    Train,
    WorkReply,
    WorkRequest,
)
from freehold.wire.routes import (
    BLOB,
    CONTRIBUTE,
    DATASETS_HEADER,
    DECLINED,
    ENCODING_HEADER,
    LEDGER_HEADER,
    MEASURES,
    PENDING_HEADER,
    SANDBOX_HEADER,
    WAIT_HEADER,
    WEIGHT_HEADER,
    WORK,
)


class Along(NamedTuple):
    """What asks for the next piece of work, beside a body."""

    wait_s: float
    datasets: Sequence[str]
    pending: Sequence[Pending]

    def headers(self) -> dict[str, str]:
        """As headers."""
        return {
            WAIT_HEADER: repr(self.wait_s),
            DATASETS_HEADER: ",".join(self.datasets),
            PENDING_HEADER: ",".join(f"{p.run}:{p.round}" for p in self.pending),
        }


class Upstream:
    """One agent's; raises what `Connection` does."""

    def __init__(self, connection: Connection, control: Control) -> None:
        """`control` must meter the connection."""
        self._connection, self._control = connection, control
        self.head: LedgerHead | None = None
        """Where the ledger stands, shown with each message until the coordinator has answered to it."""

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def poll(self, request: WorkRequest) -> WorkReply:
        """Ask for work."""
        headers = self._shown()
        return self._heard(self._connection.post(WORK.path, request, WorkReply, headers=headers, wait_s=request.wait_s))

    def contribute(self, work: Train, found: Outgoing, fd: int, along: Along, sandbox: str) -> WorkReply:
        """Send a contribution."""
        headers = {WEIGHT_HEADER: repr(found.weight), SANDBOX_HEADER: sandbox, **along.headers(), **self._shown()}
        if found.compression != "none":
            headers[ENCODING_HEADER] = found.compression
        path = CONTRIBUTE.at(run=work.run, round=work.round)
        failpoint("agent.sending")
        reply = self._connection.put(
            path, headers, found.length, Pieces(fd), sha256=found.sha256, reply=WorkReply, wait_s=along.wait_s
        )
        failpoint("agent.sent")
        return self._heard(reply)

    def measures(self, body: bytes, along: Along) -> WorkReply:
        """Send measures."""
        headers = {**along.headers(), **self._shown()}
        return self._heard(self._connection.post(MEASURES.path, body, WorkReply, headers=headers, wait_s=along.wait_s))

    def expect(self, work: Train | Measure) -> None:
        """The guard has written that an answer to this work leaves now."""
        path = MEASURES.path if isinstance(work, Measure) else CONTRIBUTE.at(run=work.run, round=work.round)
        self._control.expect(path)

    def decline(self, work: Train | Measure, code: int, message: str, along: Along) -> WorkReply:
        """Decline a piece of work."""
        declined = Declined(
            run=work.run,
            round=work.round,
            code=code,
            message=message,
            wait_s=along.wait_s,
            datasets=list(along.datasets),
            pending=list(along.pending)[:MOST_PENDING],
        )
        headers = self._shown()
        return self._heard(self._connection.post(DECLINED.path, declined, WorkReply, headers=headers, wait_s=along.wait_s))

    def fetch(self, blob: Blob, memory: Memory) -> None:
        """Have the bytes of a blob."""
        self._connection.get_blob(BLOB.at(sha256=blob.sha256), blob.length, blob.sha256, memory)

    def _shown(self) -> Mapping[str, str]:
        head = self.head
        return {} if head is None else {LEDGER_HEADER: f"{head.n}:{head.hash}:{head.key}:{head.signature}"}

    def _heard(self, reply: WorkReply) -> WorkReply:
        if reply.ledger is not None:
            self.head = None
        return reply
