"""Which of several coordinators over one database closes rounds: the one that holds a row of it, until a time.

A holder that was frozen or cut off may believe that it still leads. So whatever only the leader may write looks at the row in
the same transaction, and a shared lock on it makes who takes the lease wait for that transaction, or that transaction fail.
SQLite has one coordinator, which always leads.
"""

from __future__ import annotations

import sqlalchemy as sa

from freehold.coordinator.replica_tables import leases
from freehold.coordinator.store import Store

LIFE_S = 10.0
"""How long a leader that died is waited for. It renews three times within that."""

_NAME = "rounds"
_NOW = sa.extract("epoch", sa.func.clock_timestamp())


class Superseded(Exception):
    """Another coordinator leads, or the run has gone on: what was to be written is of no use any more."""


class Lease:
    """One coordinator's side of it. Methods run on the event loop, but `check`."""

    def __init__(self, store: Store, *, life_s: float = LIFE_S) -> None:
        self._store, self._life_s = store, life_s
        self.epoch: int | None = None if store.shared else 0
        """Grows each time that somebody takes the lease; None: somebody else has it, or nobody."""

    @property
    def held(self) -> bool:
        """Whether this coordinator leads, as far as it knows."""
        return self.epoch is not None

    @property
    def renew_s(self) -> float:
        """Between two calls of `keep`."""
        return self._life_s / 3

    def check(self, connection: sa.Connection) -> None:
        """Raise Superseded unless this coordinator leads until the transaction ends."""
        if not self._store.shared:
            return
        own = sa.select(leases.c.epoch).where(
            leases.c.name == _NAME, leases.c.holder == self._store.name, leases.c.epoch == self.epoch
        )
        if self.epoch is None or connection.execute(own.with_for_update(read=True)).first() is None:
            raise Superseded

    async def keep(self) -> bool:
        """Renew the lease, or take it if nobody has it; whether this coordinator leads now. Raises StoreError."""
        if self._store.shared:
            self.epoch = await self._store.write(self._kept if self.held else self._taken, "coordinator.lease")
        return self.held

    async def release(self) -> None:
        """Let another one lead at once."""
        if not self._store.shared or not self.held:
            return

        def give_up(connection: sa.Connection) -> None:
            connection.execute(sa.update(leases).where(*self._own()).values(until=0.0))
            self._store.announce(connection, "lease")

        await self._store.write(give_up, "coordinator.lease")
        self.epoch = None

    def _own(self) -> tuple[sa.ColumnElement[bool], ...]:
        return leases.c.name == _NAME, leases.c.holder == self._store.name, leases.c.epoch == self.epoch

    def _kept(self, connection: sa.Connection) -> int | None:
        renewed = connection.execute(sa.update(leases).where(*self._own()).values(until=_NOW + self._life_s))
        return self.epoch if renewed.rowcount else self._taken(connection)

    def _taken(self, connection: sa.Connection) -> int | None:
        free = sa.or_(leases.c.until < _NOW, leases.c.holder == self._store.name)
        values = {"holder": self._store.name, "epoch": leases.c.epoch + 1, "until": _NOW + self._life_s}
        take = sa.update(leases).where(leases.c.name == _NAME, free).values(values).returning(leases.c.epoch)
        found = connection.execute(take).scalar()
        return None if found is None else int(found)
