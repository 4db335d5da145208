"""Bodies as they arrive: bounded, never slower than a least pace, hashed and written by threads, verified before they count."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from aiohttp import ClientError, StreamReader, web

from freehold.errors import BodyRefused, EncodingRefused, StoreError, TooLarge
from freehold.plan import Compression
from freehold.wire.messages import Message, decode
from freehold.wire.routes import ENCODING_HEADER

SMALL_BYTES: Final = 1 << 16
"""Bodies up to this size do not touch the disk."""
MESSAGE_LIMIT_BYTES: Final = 1 << 20
"""Of a JSON message."""

_BATCH_BYTES = 1 << 18
_PREFIX, _SUFFIX = ".incoming-", ".part"

M = TypeVar("M", bound=Message)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How slow a body may arrive before it is refused. Time that this side takes does not count."""

    chunk_s: float = 30.0
    """Until the next byte."""
    least_bytes_per_s: float = 4096.0
    """On average, after `grace_s`."""
    grace_s: float = 30.0
    disk_s: float = 120.0
    """Until a batch is written."""


_DEFAULT: Final = Pace()


async def read_message(request: web.Request, kind: type[M], *, pace: Pace = _DEFAULT) -> M:
    """The message in a request's body; raises WireError and its kinds."""
    length = _length(request, MESSAGE_LIMIT_BYTES)
    return decode(await _whole(request, length, pace), kind)


class Ingest:
    """Takes bodies into a folder, which is its own; what a crash left there is removed. At most `threads` hash and write."""

    def __init__(self, folder: Path, *, threads: int = 2, pace: Pace = _DEFAULT) -> None:
        self._folder = folder
        self.pace = pace
        for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            left.unlink()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ingest")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def receive_body(
        self, request: web.Request, *, sha256: str, limit_bytes: int, compression: Compression = "none"
    ) -> bytes | Path:
        """A request's body: a small one as bytes, another as a file in the folder, which the caller names, or removes. It is kept
        as it travels; digest and length are those of these bytes.

        Raises TooLarge above `limit_bytes`, and EncodingRefused for another compression, before anything is read; BodyRefused
        without a length, for another digest, and for what arrives too slowly or not to its end; StoreError when the disk fails.
        Then there is no file.
        """
        length = _length(request, limit_bytes, compression)
        if length <= SMALL_BYTES:
            body = await _whole(request, length, self.pace)
            _verify(hashlib.sha256(body).hexdigest(), sha256)
            return body
        try:
            spool = _Spool(self._folder)
            try:
                await self._spool(spool, _Arrival(request.content, length, self.pace))
                _verify(spool.close(), sha256)
                return spool.path
            except BaseException:
                spool.discard()
                raise
        except OSError as error:
            raise StoreError(
                f"A body cannot be written: {error.strerror or 'it takes too long'}.", hint="Look at the coordinator's disk."
            ) from error

    async def _spool(self, spool: _Spool, arrival: _Arrival) -> None:
        loop = asyncio.get_running_loop()
        writing: asyncio.Future[None] | None = None
        batch: list[bytes] = []
        try:
            while arrival.rest:
                batch.append(await arrival.piece())
                if sum(map(len, batch)) >= _BATCH_BYTES or not arrival.rest:
                    # One batch is written while the next arrives; no more is held.
                    if writing is not None:
                        await self._written(writing)
                    writing = loop.run_in_executor(self._pool, spool.write, batch)
                    batch = []
            if writing is not None:
                await self._written(writing)
                writing = None
        finally:
            if writing is not None:
                # Nobody asks any more; after `discard`, a batch that still waits for its thread does nothing.
                writing.add_done_callback(lambda done: None if done.cancelled() else done.exception())

    async def _written(self, writing: asyncio.Future[None]) -> None:
        async with asyncio.timeout(self.pace.disk_s):
            await writing


class _Arrival:
    """The pieces of a body, in time."""

    def __init__(self, content: StreamReader, length: int, pace: Pace) -> None:
        self.rest = length
        self._content = content
        self._pace = pace
        self._received = 0
        self._loop = asyncio.get_running_loop()
        self._began = self._left = self._loop.time()

    async def piece(self) -> bytes:
        """The next bytes; raises BodyRefused."""
        now = self._loop.time()
        self._began += now - self._left
        due = self._began + self._pace.grace_s + self._received / self._pace.least_bytes_per_s
        try:
            piece = self._content.read_nowait()  # small bodies come with their headers
            if not piece:
                async with asyncio.timeout_at(min(now + self._pace.chunk_s, due)):
                    piece = await self._content.readany()
        except TimeoutError:
            raise BodyRefused("A body arrived too slowly.", hint="Check the network; it is sent again.") from None
        except (ClientError, OSError, web.RequestPayloadError):
            piece = b""
        if not piece:
            raise BodyRefused(f"A body ended {self.rest} bytes too early.", hint="Check the network; it is sent again.")
        self._received += len(piece)
        self.rest -= len(piece)
        self._left = self._loop.time()
        return piece


class _Spool:
    """A file being written and hashed by threads, one batch after another, that may be given up at any moment."""

    def __init__(self, folder: Path) -> None:
        fd, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder)
        self.path = Path(name)
        self._fd: int | None = fd
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()  # else a file could be closed, and its number reused, under a thread that writes

    def write(self, batch: Sequence[bytes]) -> None:
        with self._lock:
            for piece in batch if self._fd is not None else ():
                self._digest.update(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]  # type: ignore[arg-type]

    def close(self) -> str:
        """The digest of all that was written."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        return self._digest.hexdigest()

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def _length(request: web.Request, limit_bytes: int, compression: Compression = "none") -> int:
    """The announced length; aiohttp ends the body there."""
    if request.headers.getall(ENCODING_HEADER, []) != ([] if compression == "none" else [compression]):
        raise EncodingRefused(
            "A body came compressed that should not be." if compression == "none" else f"A body must come as {compression}.",
            hint="The plan's contribution.compression says how a contribution travels; messages are never compressed.",
        )
    length = request.content_length
    if length is None:
        raise BodyRefused("A body came without its length.", hint="Send Content-Length.")
    if length > limit_bytes:
        raise TooLarge(f"A body of {length} bytes came where {limit_bytes} are allowed.", hint="The plan bounds what is sent.")
    return length


async def _whole(request: web.Request, length: int, pace: Pace) -> bytes:
    arrival = _Arrival(request.content, length, pace)
    pieces = []
    while arrival.rest:
        pieces.append(await arrival.piece())
    return b"".join(pieces)


def _verify(found: str, announced: str) -> None:
    if found != announced:
        raise BodyRefused("A body does not have the announced digest.", hint="It is sent again.")
