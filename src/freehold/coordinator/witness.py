"""The coordinator as the witness of its nodes' ledgers: the furthest head that each has shown, kept and countersigned.

Of a ledger it learns how many lines there are and the digest of the last. Who shows an older head than before, another one at
the same number, or one of another key is answered with what is known, and the operator sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from freehold.coordinator.enrolment_tables import nodes
from freehold.coordinator.schema import metadata
from freehold.coordinator.store import Store
from freehold.errors import CoordinatorError, WireError
from freehold.events import Event, Listener
from freehold.wire import spki
from freehold.wire.messages import Countersigned, LedgerHead

ledger_heads = sa.Table(
    "ledger_heads",
    metadata,
    sa.Column("node", sa.String(63), primary_key=True),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128), nullable=False),
    sa.Column("time", sa.Double, nullable=False),  # when it was first shown
    sa.Column("fault", sa.Text, nullable=False),  # what the last head that was shown had amiss; "": nothing
)


class Allowance(NamedTuple):
    """Writes that one node may bring about: so many at once, and another one after each `every_s` seconds."""

    most: int
    every_s: float


FAULTS, ADVANCES = Allowance(5, 60.0), Allowance(100, 1.0)
"""Of heads that are amiss, or no longer are; and of those that go on. An honest node comes near neither."""


class Known(NamedTuple):
    """What is known of a node's ledger."""

    head: LedgerHead
    fault: str


class Witness:
    """Keeps the heads in the store, so that several coordinators over one database know the same."""

    def __init__(
        self, store: Store, pair: Callable[[], tuple[Path, Path]], *, clock: Callable[[], float], tell: Listener
    ) -> None:
        """`pair`: the files of the coordinator's certificate with its chain, and of its key."""
        self._store, self._pair, self._clock, self._tell = store, pair, clock, tell
        self._left: dict[tuple[str, Allowance], tuple[float, float]] = {}
        """Writes that a node may still bring about, and when that was so."""

    async def shown(self, node: str, head: LedgerHead) -> Countersigned:
        """A node shows where its ledger stands; the furthest that is known of it, countersigned.

        Raises WireError for a head that its key did not sign.
        """
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(head.key)).verify(bytes.fromhex(head.signature), head.body())
        except (InvalidSignature, ValueError):
            raise WireError(
                "The head of the ledger is not signed by the key that it names.", hint="Both sides must run Freehold."
            ) from None
        known = await asyncio.to_thread(self._store.read, lambda c: _known(c, node))
        if known != Known(head, "") and (known is None or self._may_write(node, known.head, head)):
            known = await self._store.write(lambda c: self._take(c, node, head), "coordinator.witness")
            if known.fault:
                self._tell(Event("ledger.amiss", {"node": node, "shown": head.n, "known": known.head.n, "why": known.fault}))
        return await asyncio.to_thread(self._signed, node, None if known is None else known.head)

    def _may_write(self, node: str, known: LedgerHead, shown: LedgerHead) -> bool:
        """Whether this node has writes left: a head comes with each request, and a faulty node would make each of them cost one.

        Where it has none, it is answered with what is known already, and so is the operator.
        """
        allowed = FAULTS if _fault(known, shown) or shown == known else ADVANCES
        now = self._clock()
        left, when = self._left.get((node, allowed), (float(allowed.most), now))
        left = min(left + max(now - when, 0.0) / allowed.every_s, float(allowed.most))
        self._left[node, allowed] = (left - 1 if left >= 1 else left), now
        return left >= 1

    async def latest(self, node: str) -> Countersigned:
        """The same for a node that only asks."""
        known = await asyncio.to_thread(self._store.read, lambda c: _known(c, node))
        return await asyncio.to_thread(self._signed, node, None if known is None else known.head)

    def all(self) -> dict[str, Known]:
        """Node -> what is known of its ledger."""
        return {
            row.node: _of(row)
            for row in self._store.read(lambda c: c.execute(sa.select(ledger_heads).join(nodes, _CURRENT)).all())
        }

    def _take(self, connection: sa.Connection, node: str, head: LedgerHead) -> Known:
        before = _known(connection, node)
        fault = "" if before is None else _fault(before.head, head)
        kept = head if before is None or not fault else before.head
        where = ledger_heads.c.node == node
        if before is not None and kept == before.head:
            connection.execute(sa.update(ledger_heads).where(where).values(fault=fault))
            return Known(kept, fault)
        connection.execute(sa.delete(ledger_heads).where(where))  # an earlier member's of this name, too
        values = {"n": kept.n, "hash": kept.hash, "key": kept.key, "signature": kept.signature}
        connection.execute(sa.insert(ledger_heads).values(node=node, time=self._clock(), fault=fault, **values))
        return Known(kept, fault)

    def _signed(self, node: str, head: LedgerHead | None) -> Countersigned:
        certificate, key = self._pair()
        try:
            chain = "".join(spki.certificates(certificate.read_text(encoding="ascii")))
            private = load_pem_private_key(key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise CoordinatorError(
                f"The coordinator's own key cannot be read ({type(error).__name__}).", hint="Look at its owner and mode."
            ) from None
        unsigned = Countersigned(node=node, head=head, time=self._clock(), signature="00", chain=chain)
        return Countersigned(
            node=node, head=head, time=unsigned.time, signature=_signature(private, unsigned.body()).hex(), chain=chain
        )


_CURRENT = sa.and_(nodes.c.name == ledger_heads.c.node, nodes.c.enrolled <= ledger_heads.c.time)
"""Whoever joins with a new token begins anew: the operator wanted that."""


def _known(connection: sa.Connection, node: str) -> Known | None:
    row = connection.execute(sa.select(ledger_heads).join(nodes, _CURRENT).where(ledger_heads.c.node == node)).first()
    return None if row is None else _of(row)


def _of(row: sa.Row[tuple[object, ...]]) -> Known:
    return Known(LedgerHead(n=row.n, hash=row.hash, key=row.key, signature=row.signature), row.fault)


def _fault(known: LedgerHead, shown: LedgerHead) -> str:
    if shown.key != known.key:
        return f"it is another ledger, of {shown.n} lines; one of {known.n} was known"
    if shown.n < known.n:
        return f"it went back from line {known.n} to line {shown.n}"
    if shown.n == known.n and shown.hash != known.hash:
        return f"its line {shown.n} is not the one that was known"
    return ""


def _signature(key: object, body: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(body, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(body, padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size), hashes.SHA256())
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(body)
    raise CoordinatorError("The coordinator's key is of another kind than EC, Ed25519 or RSA.", hint="Use one of those.")
