"""Turns of uploads: one of a node and run, none that waits for ever, and a bound for all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from freehold.coordinator.uploads import Uploads
from freehold.errors import Busy


class Line:
    """A connection that knows whether it was cut."""

    def __init__(self) -> None:
        self.cut = asyncio.Event()

    def abort(self) -> None:
        self.cut.set()


def live(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def taken(
    uploads: Uploads, line: Line, *, node: str = "a", run: str = "r", large: bool = False, entered: asyncio.Event | None = None
) -> None:
    """An upload that arrives until its connection is cut; or with `entered`, that has arrived and is entered until then."""
    async with uploads.turn(node, run, cast(asyncio.Transport, line), large=large) as upload:
        if entered is None:
            await line.cut.wait()
            raise ConnectionResetError
        upload.arriving = False
        await entered.wait()


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_sends_anew_has_given_the_first_up() -> None:
    async def test() -> None:
        uploads, line, go = Uploads(), Line(), asyncio.Event()
        first = asyncio.create_task(taken(uploads, line))
        await ticks()
        go.set()
        await taken(uploads, Line(), entered=go)
        assert line.cut.is_set()
        with pytest.raises(ConnectionResetError):
            await first

    live(test())


def test_what_has_arrived_is_entered_before_the_next_is_taken_and_a_third_is_refused() -> None:
    async def test() -> None:
        uploads, line, go = Uploads(), Line(), asyncio.Event()
        first = asyncio.create_task(taken(uploads, line, entered=go))
        await ticks()
        second = asyncio.create_task(taken(uploads, Line(), entered=go))
        await ticks()
        with pytest.raises(Busy):
            await taken(uploads, Line(), entered=go)
        others = [asyncio.create_task(taken(uploads, Line(), entered=go, **each)) for each in ({"run": "s"}, {"node": "b"})]
        await ticks()
        assert not second.done() and not line.cut.is_set()
        go.set()
        await asyncio.gather(first, second, *others)

    live(test())


def test_nobody_waits_for_ever_for_a_turn_or_a_place() -> None:
    async def test() -> None:
        uploads, go = Uploads(most_files=1, wait_s=0.01), asyncio.Event()
        first = asyncio.create_task(taken(uploads, Line(), entered=go, large=True))
        await ticks()
        with pytest.raises(Busy, match="earlier contribution"):
            await taken(uploads, Line(), entered=go, large=True)
        with pytest.raises(Busy, match="as many"):
            await taken(uploads, Line(), node="b", entered=go, large=True)
        go.set()
        await taken(uploads, Line(), node="b", entered=go)
        await first
        await taken(uploads, Line(), node="b", entered=go, large=True)
        assert not uploads._open and not uploads._next

    live(test())
