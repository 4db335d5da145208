"""Transactions of the store: what waits is done together, and each is answered by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from freehold.coordinator.blobs import Folder
from freehold.coordinator.enrolment_tables import denied
from freehold.coordinator.store import Store, connect


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(connect(f"sqlite:///{tmp_path / 'db.sqlite'}"), Folder(tmp_path / "blobs"))
    yield found
    found.close()


class Entering:
    """Enters words; refuses "bad", and raises for "worse" and what is there already."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def enter(self, connection: sa.Connection, words: Sequence[str]) -> list[int | Exception]:
        self.asked.append(list(words))
        good = [{"what": word, "time": 1.0, "reason": ""} for word in words if word != "bad"]
        if good:
            connection.execute(sa.insert(denied), good)
        if "worse" in words:
            raise ValueError("worse")
        return [ValueError("bad") if word == "bad" else len(word) for word in words]


def entered(store: Store, entering: Entering, words: Sequence[str]) -> list[object]:
    """What became of each word; all of them wait while another transaction is under way."""
    begun, gate = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> bool:
        begun.set()
        return gate.wait(30)

    async def whole() -> list[object]:
        first = asyncio.create_task(store.write(hold, "test"))
        assert await asyncio.to_thread(begun.wait, 30)
        rest = [asyncio.create_task(store.write_alike(entering.enter, word, "test")) for word in words]
        await asyncio.sleep(0)  # all are begun, and wait in the queue
        gate.set()
        assert await first
        return list(await asyncio.gather(*rest, return_exceptions=True))

    return asyncio.run(asyncio.wait_for(whole(), 60))


def there(store: Store) -> list[str]:
    return sorted(store.read(lambda c: c.execute(sa.select(denied.c.what)).scalars().all()))


def test_what_is_alike_is_done_at_once_and_answered_one_by_one(store: Store) -> None:
    entering = Entering()
    found = entered(store, entering, ["a", "bb", "bad", "ccc"])
    assert entering.asked == [["a", "bb", "bad", "ccc"]]
    assert [found[0], found[1], str(found[2]), found[3]] == [1, 2, "bad", 3]
    assert there(store) == ["a", "bb", "ccc"]


def test_one_that_raises_takes_no_other_with_it(store: Store) -> None:
    entering = Entering()
    found = entered(store, entering, ["a", "worse", "bb", "a"])
    assert entering.asked == [["a", "worse", "bb", "a"], ["a"], ["worse"], ["bb"], ["a"]]
    assert found[0] == 1 and str(found[1]) == "worse" and found[2] == 2
    assert isinstance(found[3], sa.exc.IntegrityError)
    assert there(store) == ["a", "bb"]
