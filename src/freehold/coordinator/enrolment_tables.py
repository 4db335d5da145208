"""The tables of enrolment, and its records in them. Of a token's secret only the SHA-256 is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from freehold import durable
from freehold.coordinator.enrolment_records import (
    CertificateRecord,
    DenialRecord,
    EnrolmentRecords,
    Event,
    NodeRecord,
    TokenRecord,
)
from freehold.coordinator.schema import metadata
from freehold.coordinator.store import explained

_NAME, _HEX = sa.String(63), sa.String(64)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(8), primary_key=True),
    sa.Column("secret_digest", _HEX, nullable=False),
    sa.Column("federation", _NAME, nullable=False),
    sa.Column("node", _NAME, nullable=True),  # the name; null: whichever the node asks for
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("creator", sa.Text, nullable=False),
    sa.Column("revoked", sa.Double, nullable=True),
    sa.Column("role", sa.String(16), nullable=False, server_default="node"),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("enrolled", sa.Double, nullable=False),
    sa.Column("left", sa.Double, nullable=True),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", _HEX, primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("key_digest", _HEX, nullable=False, unique=True),
    sa.Column("token_id", sa.String(8), nullable=True),  # null: a renewal, or an operator's
    sa.Column("chain", sa.Text, nullable=False),
    sa.Column("not_before", sa.Double, nullable=False),
    sa.Column("not_after", sa.Double, nullable=False),
    sa.Index("ix_certificates_role_name", "role", "name"),
)

denied = sa.Table(
    "denied",
    metadata,
    sa.Column("what", sa.String(100), primary_key=True),  # a serial, or a role and name with a slash between
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

enrolment_log = sa.Table(
    "enrolment_log",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("name", sa.String(100), nullable=True),
    sa.Column("serial", _HEX, nullable=True),
    sa.Column("token_id", sa.String(8), nullable=True),
    sa.Column("address", sa.Text, nullable=True),
    sa.Column("by", sa.Text, nullable=True),
    sa.Column("outcome", sa.Integer, nullable=False),  # 0, or the number of the error
)


def transactions(
    engine: sa.Engine, written: Callable[[sa.Connection], None] = lambda _: None
) -> Callable[[], AbstractContextManager[EnrolmentRecords]]:
    """Enrolment's records in a transaction each: on the disk when the block is left, undone when it raises.

    `written` is told at the end of each.
    """

    @contextlib.contextmanager
    def transaction() -> Iterator[EnrolmentRecords]:
        with explained(), engine.connect() as connection:
            yield SqlRecords(connection)
            written(connection)
            durable.commit(connection.commit, "coordinator.enrolment")

    return transaction


def readings(engine: sa.Engine) -> Callable[[], AbstractContextManager[EnrolmentRecords]]:
    """The same for blocks that only read."""

    @contextlib.contextmanager
    def reading() -> Iterator[EnrolmentRecords]:
        with explained(), engine.connect() as connection:
            yield SqlRecords(connection)

    return reading


class SqlRecords:
    """Enrolment's records over a connection; whoever made the connection commits."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def put_token(self, token: TokenRecord) -> None:
        """See EnrolmentRecords."""
        self._connection.execute(sa.insert(tokens).values(**vars(token)))

    def take_token(self, token_id: str, uses: int = 1) -> bool:
        """See EnrolmentRecords."""
        taken = sa.update(tokens).where(tokens.c.id == token_id, tokens.c.uses >= uses).values(uses=tokens.c.uses - uses)
        return self._connection.execute(taken).rowcount == 1

    def token(self, token_id: str) -> TokenRecord | None:
        """See EnrolmentRecords."""
        row = self._connection.execute(sa.select(tokens).where(tokens.c.id == token_id)).mappings().one_or_none()
        return None if row is None else TokenRecord(**row)

    def tokens(self) -> list[TokenRecord]:
        """See EnrolmentRecords."""
        rows = self._connection.execute(sa.select(tokens).order_by(tokens.c.created, tokens.c.id)).mappings()
        return [TokenRecord(**row) for row in rows]

    def revoke_token(self, token_id: str, now: float) -> bool:
        """See EnrolmentRecords."""
        return self._connection.execute(sa.update(tokens).where(tokens.c.id == token_id).values(revoked=now)).rowcount == 1

    def nodes(self) -> list[NodeRecord]:
        """See EnrolmentRecords."""
        return [NodeRecord(**row) for row in self._connection.execute(sa.select(nodes).order_by(nodes.c.name)).mappings()]

    def put_node(self, name: str, now: float, *, replace: bool) -> bool:
        """See EnrolmentRecords."""
        free = sa.true() if replace else nodes.c.left.is_not(None)
        again = sa.update(nodes).where(nodes.c.name == name, free).values(enrolled=now, left=None)
        if self._connection.execute(again).rowcount:
            return True
        return self._insert(nodes, {"name": name, "enrolled": now, "left": None})

    def hold_node(self, name: str) -> bool:
        """See EnrolmentRecords."""
        held = sa.update(nodes).where(nodes.c.name == name, nodes.c.left.is_(None)).values(name=name)
        return self._connection.execute(held).rowcount == 1

    def hold_identity(self, role: str, name: str) -> bool:
        """See EnrolmentRecords."""
        c = certificates.c
        held = sa.update(certificates).where(c.role == role, c.name == name).values(name=name)
        return self._connection.execute(held).rowcount > 0

    def end_node(self, name: str, now: float) -> None:
        """See EnrolmentRecords."""
        self._connection.execute(sa.update(nodes).where(nodes.c.name == name).values(left=now))

    def put_certificate(self, certificate: CertificateRecord) -> bool:
        """See EnrolmentRecords."""
        return self._insert(certificates, vars(certificate))

    def certificate_of_key(self, key_digest: str) -> CertificateRecord | None:
        """See EnrolmentRecords."""
        found = sa.select(certificates).where(certificates.c.key_digest == key_digest)
        row = self._connection.execute(found).mappings().one_or_none()
        return None if row is None else CertificateRecord(**row)

    def certificate(self, serial: str) -> CertificateRecord | None:
        """See EnrolmentRecords."""
        row = self._connection.execute(sa.select(certificates).where(certificates.c.serial == serial)).mappings().one_or_none()
        return None if row is None else CertificateRecord(**row)

    def serials(self, role: str, name: str, now: float) -> list[str]:
        """See EnrolmentRecords."""
        c = certificates.c
        found = sa.select(c.serial).where(c.role == role, c.name == name, c.not_after > now)
        return list(self._connection.execute(found.order_by(c.not_before)).scalars())

    def deny(self, what: str, now: float, reason: str) -> None:
        """See EnrolmentRecords."""
        if self.denied(what) is None:
            self._connection.execute(sa.insert(denied).values(what=what, time=now, reason=reason))

    def allow(self, what: str) -> bool:
        """See EnrolmentRecords."""
        return self._connection.execute(sa.delete(denied).where(denied.c.what == what)).rowcount == 1

    def denied(self, *what: str) -> str | None:
        """See EnrolmentRecords."""
        return self._connection.execute(sa.select(denied.c.reason).where(denied.c.what.in_(what)).limit(1)).scalar()

    def denials(self) -> list[DenialRecord]:
        """See EnrolmentRecords."""
        whose = (certificates.c.role + "/" + certificates.c.name).label("identity")
        same = certificates.c.serial.in_([denied.c.what, "0" + denied.c.what])
        held = sa.join(denied, certificates, same, isouter=True)
        rows = self._connection.execute(sa.select(denied, whose).select_from(held).order_by(denied.c.time, denied.c.what))
        return [DenialRecord(**row) for row in rows.mappings()]

    def identities(self) -> set[str]:
        """See EnrolmentRecords."""
        people = sa.select(certificates.c.role, certificates.c.name)
        invited = sa.select(tokens.c.role, tokens.c.node).where(tokens.c.node.is_not(None))
        found = sa.union(people, invited, sa.select(sa.literal("node"), nodes.c.name))
        return {f"{role}/{name}" for role, name in self._connection.execute(found)}

    def knows_serial(self, serial: str) -> bool:
        """See EnrolmentRecords."""
        c, same = enrolment_log.c, (serial, f"0{serial}")
        given = sa.select(sa.literal(1)).where(certificates.c.serial.in_(same))
        seen = sa.select(sa.literal(1)).where(c.event == "seen", c.serial.in_(same))
        return self._connection.execute(sa.union_all(given, seen).limit(1)).first() is not None

    def was_seen(self, name: str, serial: str) -> bool:
        """See EnrolmentRecords."""
        c = enrolment_log.c
        found = sa.select(c.id).where(c.event == "seen", c.name == name, c.serial == serial).limit(1)
        return self._connection.execute(found).first() is not None

    def log(self, event: Event) -> None:
        """See EnrolmentRecords."""
        self._connection.execute(sa.insert(enrolment_log).values(**vars(event)))

    def _insert(self, table: sa.Table, values: Mapping[str, object]) -> bool:
        try:
            self._connection.execute(sa.insert(table).values(**values))
        except IntegrityError:
            return False
        return True
