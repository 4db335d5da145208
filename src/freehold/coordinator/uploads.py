"""Contributions on their way in: one at a time of each node and run, and not more files at once than there is a place for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from freehold.errors import Busy
from freehold.wire.server import cut

MOST_FILES: Final = 512
"""Large bodies that arrive at once, each with a descriptor and a file that may grow to what the plan allows."""

WAIT_S: Final = 20.0
"""For a turn: less than the 30 s that a node waits until a byte more of its body is taken."""


class Upload:
    """A contribution that arrives, and then is entered."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.transport, self.arriving, self.ended = transport, True, asyncio.Event()


class Uploads:
    """Gives out turns. Methods run on the event loop."""

    def __init__(self, *, most_files: int = MOST_FILES, wait_s: float = WAIT_S) -> None:
        self._files, self._wait_s = asyncio.Semaphore(most_files), wait_s
        self._open: dict[tuple[str, str], Upload] = {}
        self._next: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def turn(self, node: str, run: str, transport: asyncio.Transport | None, *, large: bool) -> AsyncIterator[Upload]:
        """Take a contribution of this node to this run, once an earlier one has ended, and a place for a file if it is `large`.

        A node that sends anew has given up what still arrives over another connection, which is cut. Raises Busy after `wait_s`,
        and at once for a third.
        """
        key = node, run
        if key in self._open:
            await self._wait(key)
        upload = self._open[key] = Upload(transport)
        try:
            if not large:
                yield upload
                return
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._files.acquire()
            except TimeoutError:
                raise Busy("The coordinator takes in as many contributions as it can.", hint=_AGAIN) from None
            try:
                yield upload
            finally:
                self._files.release()
        finally:
            del self._open[key]
            upload.ended.set()

    async def _wait(self, key: tuple[str, str]) -> None:
        busy = Busy(f"An earlier contribution of this node to run {key[1]} is still being taken.", hint=_AGAIN)
        if key in self._next:
            raise busy
        self._next.add(key)
        try:
            async with asyncio.timeout(self._wait_s):
                while (before := self._open.get(key)) is not None:
                    if before.arriving and before.transport is not None:
                        cut(before.transport)
                    await before.ended.wait()
        except TimeoutError:
            raise busy from None
        finally:
            self._next.discard(key)


_AGAIN = "Nothing is lost: the node asks for work again after a pause."
