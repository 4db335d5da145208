"""A coordinator as the witness of ledgers: its store, its certificate, and no network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from freehold.coordinator.authority import Authority
from freehold.coordinator.blobs import Folder
from freehold.coordinator.enrolment_tables import nodes
from freehold.coordinator.store import Store, connect
from freehold.coordinator.witness import Witness
from freehold.events import Event
from freehold.wire.messages import Countersigned, LedgerHead

NOW = 1_800_000_000.0


class Coordinator:
    """Its witness."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.now, self.events = NOW, list[Event]()
        self.authority = Authority.open(folder / "authority", federation="test", now=NOW, ca_dir=folder / "ca")
        self.pair = (folder / "server.pem", folder / "server.pem")
        self.authority.issue_server(self.pair[0], hosts=["localhost"], now=NOW)
        self.store = Store(connect(f"sqlite:///{folder / 'db.sqlite'}"), Folder(folder / "blobs"))
        self.witness = Witness(self.store, lambda: self.pair, clock=lambda: self.now, tell=self.events.append)

    @property
    def roots(self) -> str:
        """What nodes trust."""
        return self.authority.roots_pem

    def enroll(self, node: str) -> None:
        """A node joins, or joins anew."""

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(nodes).where(nodes.c.name == node))
            connection.execute(sa.insert(nodes).values(name=node, enrolled=self.now, left=None))

        asyncio.run(self.store.write(write, "coordinator.enrolment"))

    def shown(self, node: str, head: LedgerHead) -> Countersigned:
        """Its answer to a head."""
        return asyncio.run(self.witness.shown(node, head))

    def latest(self, node: str) -> Countersigned:
        """Its answer to who only asks."""
        return asyncio.run(self.witness.latest(node))

    def fault(self, node: str) -> str:
        """What the operator sees."""
        return self.witness.all()[node].fault


@contextmanager
def coordinator(folder: Path) -> Iterator[Coordinator]:
    """One, with alice enrolled where nobody is yet."""
    found = Coordinator(folder)
    if not found.store.read(lambda c: c.execute(sa.select(nodes)).all()):
        found.enroll("alice")
    try:
        yield found
    finally:
        found.store.close()
