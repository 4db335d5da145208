"""The lease over a real PostgreSQL: one holder at a time, and a holder that was superseded writes nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from freehold.coordinator.blobs import Folder
from freehold.coordinator.lease import Lease, Superseded
from freehold.coordinator.replica_tables import leases
from freehold.coordinator.store import Store, connect
from tests.postgres import Postgres, postgres

FOREVER_S = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture
def stores(server: Postgres, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    name = f"t{os.urandom(6).hex()}"
    engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    url = server.url.replace("/postgres?", f"/{name}?")
    both = Store(connect(url), Folder(tmp_path / "a"), "a"), Store(connect(url), Folder(tmp_path / "b"), "b")
    yield both
    for store in both:
        store.close()


async def expire(store: Store) -> None:
    await store.write(lambda c: c.execute(sa.update(leases).values(until=0.0)), "test")


async def leads(store: Store, lease: Lease) -> bool:
    try:
        await store.write(lease.check, "test")
    except Superseded:
        return False
    return True


def test_one_holder_at_a_time(stores: tuple[Store, Store]) -> None:
    async def scenario() -> None:
        a, b = (Lease(store, life_s=FOREVER_S) for store in stores)
        assert await a.keep() and not await b.keep()
        assert await a.keep() and a.epoch == 1 and b.epoch is None
        assert await leads(stores[0], a) and not await leads(stores[1], b)

    asyncio.run(scenario())


def test_who_was_superseded_writes_nothing_though_it_believes_that_it_leads(stores: tuple[Store, Store]) -> None:
    async def scenario() -> None:
        a, b = (Lease(store, life_s=FOREVER_S) for store in stores)
        await a.keep()
        await expire(stores[1])
        assert await b.keep() and b.epoch == 2
        assert a.held and not await leads(stores[0], a)
        assert not await a.keep() and not a.held

    asyncio.run(scenario())


def test_a_coordinator_that_comes_back_need_not_wait_for_itself(stores: tuple[Store, Store]) -> None:
    async def scenario() -> None:
        before, after = (Lease(stores[0], life_s=FOREVER_S) for _ in range(2))
        await before.keep()
        assert await after.keep() and after.epoch == 2
        assert not await leads(stores[0], before) and await leads(stores[0], after)

    asyncio.run(scenario())


def test_released_it_is_free(stores: tuple[Store, Store]) -> None:
    async def scenario() -> None:
        a, b = (Lease(store, life_s=FOREVER_S) for store in stores)
        await a.keep()
        await a.release()
        assert not a.held and await b.keep()

    asyncio.run(scenario())


def test_it_is_not_taken_within_a_transaction_that_has_looked(stores: tuple[Store, Store]) -> None:
    """Who takes the lease waits until the leader's transaction is over: so what was checked holds until the commit."""

    async def scenario() -> None:
        a, b = (Lease(store, life_s=FOREVER_S) for store in stores)
        await a.keep()
        await expire(stores[1])
        looked, go_on = threading.Event(), threading.Event()

        def slow(connection: sa.Connection) -> int:
            a.check(connection)
            looked.set()
            assert go_on.wait(60)
            return int(connection.execute(sa.select(leases.c.epoch)).scalar_one())

        writing = asyncio.create_task(stores[0].write(slow, "test"))
        assert await asyncio.to_thread(looked.wait, 60)
        taking = asyncio.create_task(b.keep())
        waiting = sa.text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")
        while not stores[0].read(lambda c: c.execute(waiting).scalar_one()):
            await asyncio.sleep(0)
        assert not taking.done()
        go_on.set()
        assert await writing == 1
        assert await taking and b.epoch == 2

    asyncio.run(scenario())
