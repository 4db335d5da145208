"""Where what is too large for a row lies: in a folder beside the database, or in a bucket that speaks S3.

Names of places are given out once: whoever does a step again, in another process, writes beside what it finds there.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from freehold import durable
from freehold.errors import MissingExtra, StoreError, UsageError
from freehold.failpoints import failpoint
from freehold.wire.local import PIECE_BYTES, Pieces

if TYPE_CHECKING:
    from obstore.store import S3Store

SUFFIX: Final = ".safetensors"

PART_BYTES: Final = 8 << 20
"""What travels to a bucket in one request, and is in memory meanwhile."""

MOST_PARTS: Final = 10_000
"""Of one object, by S3."""

GRACE_S: Final = 24 * 3600.0
"""How old an object without a row must be before it is taken for what a crash left: another coordinator may be at work on it."""

_CONNECT_S, _SILENT_S, _RETRY_S = 5, 30, 20
_HINT = "Look at the bucket and the network; studies go on where they were."

Body = bytes | Pieces | Path


class Blobs(Protocol):
    """Large bodies by place. All but `keep` may find that a place is empty; everything raises StoreError or OSError."""

    def keep(self, body: Body, *, name: str, point: str) -> str:
        """Make a body safe; the place, which begins with `name`. A path is a finished file of ours, which may be moved."""

    def open(self, place: str, sha256: str) -> int:
        """A descriptor that shows what lies at a place, which the caller closes."""

    def remove(self, places: Collection[str]) -> None:
        """Delete, also what is not there."""

    def left(self, named: Collection[str], runs: Collection[str]) -> tuple[int, list[str]]:
        """How many of the named places are there, and what else is that nobody needs; `runs` are those of the database."""


class Folder:
    """A folder of one coordinator's own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder

    def keep(self, body: Body, *, name: str, point: str) -> str:
        """A step that is done again finds its own file."""
        place = f"{name}{SUFFIX}"
        if isinstance(body, Path):
            durable.sync(body)
            durable.name(body, self.folder / place, point=point)
        else:
            durable.write(self.folder / place, body, point=point)
        return place

    def open(self, place: str, sha256: str) -> int:
        """The file itself."""
        return os.open(self.folder / place, os.O_RDONLY | os.O_CLOEXEC)

    def remove(self, places: Collection[str]) -> None:
        """Unlink."""
        for place in places:
            (self.folder / place).unlink(missing_ok=True)

    def left(self, named: Collection[str], runs: Collection[str]) -> tuple[int, list[str]]:
        """Every file without a row: nobody else writes here."""
        there = [path.name for path in self.folder.iterdir() if path.is_file()]
        unnamed = [place for place in there if place not in named]
        return len(there) - len(unnamed), unnamed


class Bucket:
    """Objects below `s3://bucket/prefix`, which several coordinators of one database may share."""

    def __init__(self, url: str, spool: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Objects that are read lie in files without a name in `spool`. Endpoint and credentials come from AWS_ variables.

        Raises UsageError for a URL of another form, MissingExtra, and StoreError unless objects can be written, read, listed
        and deleted.
        """
        bucket, prefix = _parts_of(url)
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise MissingExtra(
                "Blobs in a bucket need obstore, which is not installed.", hint="pip install 'freehold[s3]'"
            ) from error
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spool, self._clock = spool, clock
        self._token = secrets.token_hex(4)
        with _explained():
            self._store: S3Store = S3Store(
                bucket,
                prefix=prefix or None,
                # Not as client_options: these would replace what the environment says of the client, such as AWS_ALLOW_HTTP.
                config={  # type: ignore[arg-type]
                    "connect_timeout": f"{_CONNECT_S}s",
                    "read_timeout": f"{_SILENT_S}s",
                    "timeout": "24h",  # a large object takes as long as it takes, unless nothing comes
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=_RETRY_S)},
            )
        self._try()

    def _try(self) -> None:
        """Whether all that a study will need is allowed: better now than in the middle of it."""
        place, body = f"try.{self._token}", secrets.token_bytes(16)
        self._upload(iter([body]), len(body), place)
        os.close(self.open(place, hashlib.sha256(body).hexdigest()))
        self.left((), ())
        self.remove([place])

    def keep(self, body: Body, *, name: str, point: str) -> str:
        """In parts; the object is there whole or not at all. A step that is done again in this process replaces its own."""
        place = f"{name}.{self._token}{SUFFIX}"
        failpoint(f"{point}.writing")
        if isinstance(body, Path):
            with body.open("rb") as file:
                pieces = Pieces(file.fileno())
                self._upload(iter(pieces), pieces.length, place)
        elif isinstance(body, Pieces):
            self._upload(iter(body), body.length, place)
        else:
            self._upload(iter([body]), len(body), place)
        failpoint(f"{point}.named")
        return place

    def _upload(self, pieces: Iterator[bytes], length: int, place: str) -> None:
        import obstore

        with _explained():
            if length <= PART_BYTES:
                obstore.put(self._store, place, b"".join(pieces), use_multipart=False)
            else:
                part = max(PART_BYTES, -(-length // MOST_PARTS))
                obstore.put(self._store, place, pieces, use_multipart=True, chunk_size=part, max_concurrency=2)

    def open(self, place: str, sha256: str) -> int:
        """A copy of the object in a file without a name, verified."""
        digest = hashlib.sha256()
        with tempfile.TemporaryFile(dir=self._spool) as file:
            for piece in self._pieces(place):
                digest.update(piece)
                file.write(piece)
            file.flush()
            if digest.hexdigest() != sha256:
                raise StoreError(
                    "An object in the bucket is not what the coordinator has put there.",
                    hint="Look who else writes below `blobs`; restore database and bucket from one backup.",
                )
            # Anew and only for reading: what is handed out must not be changed, and its owner closes it.
            return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

    def _pieces(self, place: str) -> Iterator[bytes]:
        """The bytes of an object as they come; not by ranges, which rclone answers as if nobody had asked for them."""
        import obstore

        with _explained():
            stream = iter(obstore.get(self._store, place).stream(min_chunk_size=PIECE_BYTES))
        while True:
            with _explained():
                piece = next(stream, b"")
            if not piece:
                return
            yield bytes(piece)

    def remove(self, places: Collection[str]) -> None:
        """All in one request."""
        import obstore

        if places:
            with _explained():
                obstore.delete(self._store, list(places))

    def left(self, named: Collection[str], runs: Collection[str]) -> tuple[int, list[str]]:
        """Of objects without a row, those of this database's runs that are a day old: others may be about to get theirs."""
        import obstore

        found, unnamed, until = 0, [], self._clock() - GRACE_S
        with _explained():
            for page in obstore.list(self._store):
                for each in page:
                    place = each["path"]
                    if place in named:
                        found += 1
                    elif place.endswith(SUFFIX) and place.split(".")[0] in runs and each["last_modified"].timestamp() < until:
                        unnamed.append(place)
        return found, unnamed


def blobs_at(url: str, folder: Path) -> Blobs:
    """The bucket of a URL, `s3://bucket/prefix`; without one, the folder. Raises as Bucket does."""
    return Bucket(url, folder) if url else Folder(folder)


def _parts_of(url: str) -> tuple[str, str]:
    """Bucket and prefix. What is refused is not repeated: somebody may have written a password into it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    bucket, prefix = parts.netloc, parts.path.strip("/")
    plain = re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) and not (parts.query or parts.fragment)
    if parts.scheme != "s3" or not plain or not re.fullmatch(r"[A-Za-z0-9/_.=-]{0,200}", prefix) or ".." in prefix:
        raise UsageError(
            "`blobs` is not the URL of a bucket.",
            hint="Like s3://bucket/prefix; endpoint and credentials come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and others.",
        )
    return bucket, prefix


@contextmanager
def _explained() -> Iterator[None]:
    """An error of the object store as one of ours, without what it says of requests."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise _explanation(str(error)) from None


def _explanation(told: str) -> StoreError:
    status = re.search(r"status code: ([0-9]{3})", told)
    code = re.search(r"<Code>(\w{1,64})</Code>", told)
    if code is not None and code[1] == "NoSuchKey":
        return StoreError("The bucket lacks an object that it should have.", hint="Restore database and bucket from one backup.")
    if status is None:
        hint = "Check AWS_ENDPOINT_URL (http:// also needs AWS_ALLOW_HTTP=true), AWS_REGION and the network."
        return StoreError("The bucket of the coordinator's blobs does not answer.", hint=f"{hint} Studies go on where they were.")
    said = f"HTTP {status[1]}" + (f", {code[1]}" if code is not None else "")
    hints = {
        "403": "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; they must be allowed to list, read, write and delete there.",
        "404": "Make the bucket, or correct `blobs`; Freehold makes none.",
    }
    return StoreError(
        f"The bucket of the coordinator's blobs refuses ({said}).",
        hint=hints.get("403" if status[1] == "401" else status[1], _HINT),
    )
