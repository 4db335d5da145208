"""What a node says of itself by two requests at once: the later one counts, here and in the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from freehold.coordinator.blobs import Folder
from freehold.coordinator.presence import Presence
from freehold.coordinator.store import Store, connect
from freehold.coordinator.study_tables import offers

T = TypeVar("T")


class Held(Store):
    """Writes nothing before it is let."""

    go: threading.Event
    waiting = 0

    async def write(self, work: Callable[[sa.Connection], T], point: str) -> T:
        def held(connection: sa.Connection) -> T:
            assert self.go.wait(60)
            return work(connection)

        self.waiting += 1
        return await super().write(held, point)


def live(folder: Path, test: Callable[[Held, Presence], object]) -> None:
    async def whole() -> None:
        store = Held(connect(f"sqlite:///{folder / 'coordinator.sqlite'}"), Folder(folder / "blobs"))
        store.go = threading.Event()
        try:
            await test(store, Presence(store, lambda: 1000.0))  # type: ignore[misc]
        finally:
            store.go.set()
            store.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


async def offered(store: Held, presence: Presence) -> None:
    store.go.set()
    assert await presence.heard("alice", ["heart"]) == frozenset()
    store.go.clear()


async def begun(store: Held, saying: asyncio.Task[T], writes: int) -> asyncio.Task[T]:
    while store.waiting < writes:
        await asyncio.sleep(0)
    return saying


def row(store: Held) -> str:
    return str(store.read(lambda c: c.execute(sa.select(offers.c.datasets)).scalar_one()))


def test_a_node_that_comes_back_while_its_goodbye_is_written_offers_what_it_did(tmp_path: Path) -> None:
    async def test(store: Held, presence: Presence) -> None:
        await offered(store, presence)
        goodbye = await begun(store, asyncio.create_task(presence.heard("alice", [], stops=True)), 2)
        back = asyncio.create_task(presence.heard("alice", ["heart"]))
        for _ in range(3):
            await asyncio.sleep(0)
        store.go.set()
        assert await goodbye is None, "open rounds need not do without it"
        assert not await back
        assert presence.offering("heart", True) == ["alice"] and row(store) == "heart"
        assert presence.all()["alice"].connected(1000.0)

    live(tmp_path, test)


def test_a_goodbye_that_comes_while_an_offer_is_written_counts(tmp_path: Path) -> None:
    async def test(store: Held, presence: Presence) -> None:
        offer = await begun(store, asyncio.create_task(presence.heard("alice", ["heart"])), 1)
        goodbye = asyncio.create_task(presence.heard("alice", [], stops=True))
        for _ in range(3):
            await asyncio.sleep(0)
        store.go.set()
        assert await offer is None
        assert await goodbye == {"heart"}
        assert presence.offering("heart", False) == [] and row(store) == ""
        assert not presence.all()["alice"].connected(1000.0)

    live(tmp_path, test)


def test_a_node_that_leaves_while_its_offer_is_written_is_gone(tmp_path: Path) -> None:
    async def test(store: Held, presence: Presence) -> None:
        offer = await begun(store, asyncio.create_task(presence.heard("alice", ["heart"])), 1)
        presence.gone("alice")
        store.go.set()
        assert await offer is None
        assert presence.all() == {} and presence.offering("heart", False) == []

    live(tmp_path, test)


def test_two_offers_alike_are_written_once(tmp_path: Path) -> None:
    async def test(store: Held, presence: Presence) -> None:
        first = await begun(store, asyncio.create_task(presence.heard("alice", ["heart"])), 1)
        assert await presence.heard("alice", ["heart"]) is None
        store.go.set()
        assert await first == frozenset()
        assert store.waiting == 1 and presence.offering("heart", True) == ["alice"]

    live(tmp_path, test)


def test_a_node_that_was_gone_is_told_of_when_it_is_back_with_the_same(tmp_path: Path) -> None:
    async def test(store: Held, presence: Presence) -> None:
        await offered(store, presence)
        assert await presence.heard("alice", ["heart"]) is None
        presence.stopped("alice")
        assert presence.offering("heart", True) == [] and presence.offering("heart", False) == ["alice"]
        assert await presence.heard("alice", ["heart"]) == frozenset(), "a study may have waited for it"
        assert presence.offering("heart", True) == ["alice"]

    live(tmp_path, test)
