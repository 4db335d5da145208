"""The coordinator's store: a database, and a place for what is large. What it returns from is safe there.

One thread writes. What waits while a transaction is being committed goes into the next one together, so that many
contributions share one write to the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import sqlalchemy as sa

from freehold import durable
from freehold.coordinator.blobs import Blobs
from freehold.coordinator.migrate import upgrade
from freehold.coordinator.study_tables import blobs, contributions, runs, studies
from freehold.errors import StoreError
from freehold.wire.local import Pieces, close, sealed
from freehold.wire.messages import Blob

INLINE_BYTES = 64 * 1024
"""Blobs up to this size lie in the database, and travel inside of messages."""

CHANNEL = "freehold"
"""Where coordinators over one PostgreSQL tell each other what they wrote."""

_REMOTE = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""A database that has vanished without a word is noticed within seconds; names and units are libpq's."""

READING = "freehold_reading"
"""The execution option of a connection that will not write."""

Item = TypeVar("Item")
T = TypeVar("T")

Alike: TypeAlias = Callable[[sa.Connection, Sequence[Item]], Sequence[T | Exception]]
"""Does many pieces of work in one transaction; the result or the refusal of each."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    work: Callable[[sa.Connection, Sequence[Any]], Sequence[Any]]
    item: Any
    point: str
    done: Callable[[Any, BaseException | None], None]


class Put(NamedTuple):
    """A blob that is on the disk, or will be with its row."""

    sha256: str
    length: int
    body: bytes | None
    place: str | None
    """Where it lies, if it is too large for a row."""


def connect(url: str) -> sa.Engine:
    """The database behind a URL; an SQLite file is made, only for its owner to read."""
    lite = url.startswith("sqlite")
    engine = sa.create_engine(url, pool_pre_ping=not lite, connect_args={} if lite else _REMOTE)
    if engine.dialect.name == "sqlite":
        path = engine.url.database
        if path and path != ":memory:":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, record: object) -> None:
            connection.isolation_level = None  # we say BEGIN: the driver would do so only before some statements
            for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on", "busy_timeout = 10000"):
                connection.execute(f"pragma {pragma}")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            # Who only reads waits for nobody; who may write must not find out later that another one did.
            reads = connection.get_execution_options().get(READING, False)
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


class Store:
    """Transactions in one writing thread, reads anywhere, blobs by content."""

    def __init__(self, engine: sa.Engine, blobs: Blobs, name: str = "coordinator") -> None:
        """`name`: of this coordinator, among others over the same database."""
        self.engine, self.blobs, self.name = engine, blobs, name
        self.shared = engine.dialect.name == "postgresql"
        """Whether there may be other coordinators over this database."""
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="blobs")
        with explained():
            upgrade(engine)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="store", daemon=True)
        self._writer.start()

    async def write(self, work: Callable[[sa.Connection], T], point: str) -> T:
        """Run `work` in a transaction; its result once that is committed. `point` names its failpoints."""
        return await self.write_alike(lambda connection, _: [work(connection)], None, point)

    async def write_alike(self, work: Alike[Item, T], item: Item, point: str) -> T:
        """As `write`, for what comes in great numbers: `work` does all that wait at once, and returns or refuses each of them.

        What it refuses it must not have written; if it raises, it is asked once more for each alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T, error: BaseException | None) -> None:
            if not future.cancelled():
                future.set_exception(error) if error else future.set_result(result)

        self._queue.put(_Job(work=work, item=item, point=point, done=lambda r, e: _tell(loop, settle, r, e)))
        return await future

    def announce(self, connection: sa.Connection, kind: str, *arguments: object) -> None:
        """Tell other coordinators over this database, once the transaction is committed; none of the words has a space."""
        if self.shared:
            payload = " ".join([self.name, kind, *map(str, arguments)])
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, payload)))

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work`, which only reads."""
        with explained(), self.engine.connect().execution_options(**{READING: True}) as connection:
            return work(connection)

    def close(self) -> None:
        """Finish what is queued."""
        self._threads.shutdown()
        self._queue.put(None)
        self._writer.join()
        self.engine.dispose()

    def _write(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs, last = [job], False
            while not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    last = True
                    break
                jobs.append(more)
            self._together(jobs)
            if last:
                return

    def _together(self, jobs: list[_Job]) -> None:
        """One transaction for all; a job that raises is undone alone."""
        results: list[tuple[Any, BaseException | None]] = []
        try:
            with explained(), self.engine.connect() as connection, connection.begin() as transaction:
                for _, alike in itertools.groupby(jobs, key=lambda job: job.work):
                    results += _done(connection, list(alike))
                durable.commit(transaction.commit, *dict.fromkeys(job.point for job in jobs))
        except Exception as error:
            results = [(None, error)] * len(jobs)
        for job, (result, failure) in zip(jobs, results, strict=True):
            job.done(result, failure)

    # Blobs.

    async def put(self, body: bytes | Pieces | Path, *, name: str, point: str, sha256: str = "") -> Put:
        """As `put_file`; what touches the disk or the network does so in a thread. Raises StoreError."""
        with explained():
            if not isinstance(body, Path) and _length(body) <= INLINE_BYTES:
                return self.put_file(body, name=name, point=point, sha256=sha256)
            return await self._threaded(lambda: self.put_file(body, name=name, point=point, sha256=sha256))

    def put_file(self, body: bytes | Pieces | Path, *, name: str, point: str, sha256: str = "") -> Put:
        """Make a body safe before its row is written.

        A path is a finished file of ours on the same disk, whose digest is `sha256`; it may be moved. Of bytes it may be given,
        too, by who has verified it. `name` says what it is,
        and is that of nothing else: a step that is done again because the database could not be written finds its own there.
        """
        with explained():
            if isinstance(body, Path):
                length = body.stat().st_size
                return Put(sha256, length, None, self.blobs.keep(body, name=name, point=point))
            if _length(body) <= INLINE_BYTES:
                whole = body if isinstance(body, bytes) else b"".join(body)
                return Put(sha256, len(whole), whole, None) if sha256 else in_row(whole)
            digest = hashlib.sha256()
            for piece in (body,) if isinstance(body, bytes) else body:
                digest.update(piece)
            place = self.blobs.keep(body, name=name, point=point)
        return Put(digest.hexdigest(), _length(body), None, place)

    async def drop(self, put: Put) -> None:
        """Remove what gets no row."""
        await self.remove([put.place] if put.place is not None else [])

    async def remove(self, places: Collection[str]) -> None:
        """Remove what no row names any more, as far as that is possible now; the rest is swept."""
        if places:
            with contextlib.suppress(StoreError, OSError):
                await self._threaded(lambda: self.blobs.remove(places))

    def insert_blob(self, connection: sa.Connection, put: Put) -> list[str]:
        """The row of what `put_file` made safe. If it is there already, the new place is to be removed after the commit."""
        sha256, length, body, place = put
        there = connection.execute(sa.select(blobs.c.place).where(blobs.c.sha256 == sha256)).first()
        if there is None:
            connection.execute(sa.insert(blobs).values(sha256=sha256, length=length, body=body, place=place))
        return [place] if there is not None and place is not None and place != there.place else []

    def sweep(self) -> int:
        """Remove what a crash left between a blob and its row; how many. Raises StoreError if no blob is where it should be."""
        named = self._named()
        with explained():
            found, left = self.blobs.left(named, set(self.read(lambda c: c.execute(sa.select(runs.c.id)).scalars().all())))
            # Asked again: what was named may have been replaced while the places were listed.
            if named and not found and named & self._named():
                raise StoreError(
                    f"Of {len(named)} blobs that the database names, none is where it should be.",
                    hint="Correct `blobs`, or restore database and blobs from one backup.",
                )
            self.blobs.remove(left)
        return len(left)

    def _named(self) -> set[str]:
        places = sa.union_all(sa.select(blobs.c.place), sa.select(contributions.c.place))
        return set(filter(None, self.read(lambda c: c.execute(places).scalars().all())))

    def blob(self, sha256: str) -> Blob:
        """A blob as it is announced: small ones with their bytes."""
        row = self._blob(sha256)
        return Blob(sha256=sha256, length=row.length, body=row.body if row.length <= INLINE_BYTES else None)

    def blob_bytes(self, sha256: str) -> bytes:
        """All bytes of a plan."""
        fd = self.open_blob(sha256)
        try:
            return b"".join(Pieces(fd))
        finally:
            close([fd])

    def open_blob(self, sha256: str) -> int:
        """A descriptor that shows a blob, which the caller closes."""
        row = self._blob(sha256)
        if row.body is not None:
            return sealed(row.body, "blob")
        return self.open_place(row.place, sha256)

    def open_place(self, place: str, sha256: str) -> int:
        """The same of a blob or a contribution whose place is known."""
        with explained():
            return self.blobs.open(place, sha256)

    async def opened(self, sha256: str) -> int:
        """As `open_blob`, in a thread."""
        opening = asyncio.ensure_future(self._threaded(lambda: self.open_blob(sha256)))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise

    async def _threaded(self, work: Callable[[], T]) -> T:
        """In one of our own threads: if the bucket hangs, enrolment and the algorithms' code do not."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _blob(self, sha256: str) -> Any:
        row = self.read(lambda c: c.execute(sa.select(blobs).where(blobs.c.sha256 == sha256)).first())
        if row is None:
            raise StoreError("The store lacks bytes that it should have.", hint="Restore database and blobs from one backup.")
        return row

    def release(self, connection: sa.Connection, sha256s: Iterable[str]) -> list[str]:
        """Delete the rows of blobs that nothing refers to any more; the places to remove once that is committed."""
        places = []
        for sha256 in sha256s:
            used = sa.select(sa.literal(1)).where(
                sa.or_(
                    sa.exists().where(sa.or_(runs.c.server == sha256, runs.c.shared == sha256)),
                    sa.exists().where(studies.c.plan == sha256),
                )
            )
            if connection.execute(used).first() is None:
                place = connection.execute(sa.select(blobs.c.place).where(blobs.c.sha256 == sha256)).scalar()
                connection.execute(sa.delete(blobs).where(blobs.c.sha256 == sha256))
                places += [place] if place else []
        return places


def _done(connection: sa.Connection, alike: Sequence[_Job]) -> list[tuple[Any, BaseException | None]]:
    """The result or error of each of some jobs that one piece of work does."""
    try:
        with connection.begin_nested():
            found = alike[0].work(connection, [job.item for job in alike])
    except sa.exc.OperationalError:
        raise  # a full disk: the database may have undone more than this
    except Exception as error:
        return [(None, error)] if len(alike) == 1 else [each for job in alike for each in _done(connection, [job])]
    return [(None, each) if isinstance(each, Exception) else (each, None) for each in found]


def _close_result(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        close([opening.result()])


def in_row(body: bytes) -> Put:
    """What goes into the database whatever its size, since it is needed while the bucket is away: plans."""
    return Put(hashlib.sha256(body).hexdigest(), len(body), body, None)


def _length(body: bytes | Pieces) -> int:
    return len(body) if isinstance(body, bytes) else body.length


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], result: Any, error: BaseException | None) -> None:
    try:
        loop.call_soon_threadsafe(settle, result, error)
    except RuntimeError:  # the loop has ended; nobody waits
        return


class explained:
    """A database or disk error as one of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sa.exc.SQLAlchemyError | OSError):
            what = getattr(error, "orig", None) or getattr(error, "strerror", None) or error
            raise StoreError(
                f"The coordinator's store cannot be used: {what}.",
                hint="Make room on the disk, or look after the database; studies go on where they were.",
            ) from error
