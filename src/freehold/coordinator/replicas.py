"""Several coordinators over one PostgreSQL: any of them serves nodes and operators, one of them opens and closes rounds.

Each keeps the open rounds in memory as a single coordinator does, and hears what the others have committed. Who leads adds up
what all of them took; when it dies, another one takes the lease and builds the sums anew from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from freehold import durable
from freehold.coordinator.authority import Authority
from freehold.coordinator.lease import Lease, Superseded
from freehold.coordinator.presence import Presence
from freehold.coordinator.replica_tables import leases, roots
from freehold.coordinator.store import Store
from freehold.coordinator.studies import Studies
from freehold.coordinator.watch import Watch
from freehold.errors import CoordinatorError, FreeholdError, StoreError
from freehold.events import Event, Listener
from freehold.wire import spki

_STARTING = 0x66726565
"""Of the lock under which coordinators look at what they must agree on."""


class Replicas:
    """Keeps one coordinator in step with the others. Methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        studies: Studies,
        presence: Presence,
        reread: Callable[[], None],
        *,
        tell: Listener,
    ) -> None:
        """`reread` is told when the deny list may have changed."""
        self._store, self._lease, self._studies, self._presence = store, lease, studies, presence
        self._reread, self._tell = reread, tell
        self._changes: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: Watch | None = None
        self._nodes_changed = False

    def start(self) -> None:
        """Follow the others, if there can be any."""
        if not self._store.shared:
            return
        loop = asyncio.get_running_loop()
        self._watch = Watch(self._store, lambda kind, words: _hand_over(loop, self._put, kind, words))
        self._tasks = [loop.create_task(self._follow()), loop.create_task(self._tick())]

    async def close(self) -> None:
        """Let another one lead."""
        if self._watch is None:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._watch.close)
        try:
            await self._lease.release()
        except StoreError as error:
            self._tell(Event("coordinator.error", {"kind": type(error).__name__, "code": error.code}))

    def _put(self, kind: str, words: list[str]) -> None:
        if kind == "nodes":
            if self._nodes_changed:
                return  # thousands may join at once
            self._nodes_changed = True
        self._changes.put_nowait((kind, words))

    async def _tick(self) -> None:
        """Keep the lease whatever else is being done: to read large contributions may take longer than it lasts."""
        while True:
            await asyncio.sleep(self._lease.renew_s)
            await self._guarded(self._renew())

    async def _follow(self) -> None:
        """One change after another; what could not be followed is made good by reading everything."""
        missed = False
        while True:
            kind, words = await self._changes.get()
            if kind == "nodes":
                self._nodes_changed = False
            if missed:
                missed = not await self._guarded(self._studies.catch_up())
            missed = not await self._guarded(self._changed(kind, words)) or missed

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it was done; what it raised is told, since nobody else would hear of it."""
        try:
            await work
        except Superseded:
            return False
        except Exception as error:
            code = error.code if isinstance(error, FreeholdError) else 0
            self._tell(Event("coordinator.error", {"kind": type(error).__name__, "code": code}))
            return False
        return True

    async def _changed(self, kind: str, words: list[str]) -> None:
        if kind == "lease":
            await self._renew()
        elif kind == "led":
            await self._studies.recover()
        elif kind == "nodes":
            await self._look_at_nodes()
        elif kind == "everything":
            await self._look_at_nodes()
            await self._studies.catch_up()
        else:
            await self._studies.changed(kind, words)

    async def _renew(self) -> None:
        led = self._lease.epoch
        await self._lease.keep()
        if self._lease.epoch != led:
            self._tell(Event("coordinator.leading", {}) if self._lease.held else Event("coordinator.following", {}))
            self._changes.put_nowait(("led", []))
        await self._presence.tell_others()
        await self._look_at_nodes()

    async def _look_at_nodes(self) -> None:
        self._presence.refresh()
        self._reread()
        await self._studies.advance()
        await self._studies.leave_out()


def _hand_over(loop: asyncio.AbstractEventLoop, put: Callable[[str, list[str]], None], kind: str, words: list[str]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended; nobody follows
        loop.call_soon_threadsafe(put, kind, words)


def name_of(state: Path) -> str:
    """What this coordinator is called among others: made once, so that it need not wait for its own lease after a crash.

    The machine's name is in it, for a state folder that was copied whole: two of one name would take the lease from each other.
    """
    path = state / "replica"
    if not path.exists():
        durable.write(path, [secrets.token_hex(8).encode()], point="coordinator.replica")
    return hashlib.sha256(f"{path.read_text(encoding='ascii').strip()} {socket.gethostname()}".encode()).hexdigest()[:16]


def check_roots(connection: sa.Connection, authority: Authority) -> None:
    """Raise CoordinatorError unless this coordinator signs for the federation whose database it is; a new one is entered."""
    _one_by_one(connection)
    own = {spki.digest(pem) for pem in spki.certificates(authority.signing_roots_pem)}
    known = {row.pin: row.federation for row in connection.execute(sa.select(roots))}
    if known and (not own & known.keys() or authority.federation not in known.values()):
        raise CoordinatorError(
            f"The database belongs to the federation {next(iter(known.values()))}, whose root is not that of this coordinator.",
            hint="Copy the folder `authority` of the coordinator that was there first into this one's state folder.",
        )
    for pin in own - known.keys():
        connection.execute(sa.insert(roots).values(pin=pin, federation=authority.federation))


def check_blobs(connection: sa.Connection, store: Store, url: str, *, leads: bool) -> None:
    """Raise CoordinatorError if the coordinator that leads keeps its large blobs where this one could not read them.

    `url`: of the bucket; "" if they lie in a folder of this coordinator's own. Who leads says where they are.
    """
    if not store.shared:
        return
    _one_by_one(connection)
    own, at = hashlib.sha256(url.encode()).hexdigest() if url else store.name, leases.c.name == "blobs"
    known = connection.execute(sa.select(leases.c.holder).where(at)).scalar()
    if known != own and not leads:
        raise CoordinatorError(
            "Another coordinator over this database keeps large states and contributions where this one would not find them.",
            hint="Give all of them the same bucket, with --blobs s3://BUCKET/PREFIX; if this one has it, start it again.",
        )
    if known is None:
        connection.execute(sa.insert(leases).values(name="blobs", holder=own, epoch=0, until=0.0))
    elif known != own:
        connection.execute(sa.update(leases).where(at).values(holder=own))


def _one_by_one(connection: sa.Connection) -> None:
    """Let no other coordinator look at the same time, until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_STARTING)))
