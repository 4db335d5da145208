"""Files that are there after a power cut, whole or not at all. Nothing else in Freehold calls fsync or replaces a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from freehold.failpoints import failpoint


def write(path: Path, body: bytes | Iterable[bytes | memoryview], *, point: str, mode: int = 0o600) -> None:
    """Write a file under its final name only once it is whole and on the disk.

    `point` names the failpoints `<point>.writing` (before), `.written` (on the disk, not yet named) and `.named` (done).
    """
    failpoint(f"{point}.writing")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            for piece in (body,) if isinstance(body, bytes) else body:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        failpoint(f"{point}.written")
        name(part, path, point=point)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Put the bytes of a file on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def name(part: Path, path: Path, *, point: str) -> None:
    """Give a file that is on the disk its final name."""
    os.replace(part, path)
    sync_folder(path.parent)
    failpoint(f"{point}.named")


def remove(path: Path, *, point: str) -> None:
    """Delete a file, if it is there, and return once it stays away; failpoints `<point>.removing` and `<point>.removed`."""
    failpoint(f"{point}.removing")
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
    failpoint(f"{point}.removed")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    sync(folder)


def commit(finish: Callable[[], object], *points: str) -> None:
    """Commit a database transaction; failpoints `<point>.committing` (before) and `<point>.committed` (after) of each."""
    for point in points:
        failpoint(f"{point}.committing")
    finish()
    for point in points:
        failpoint(f"{point}.committed")


def append(fd: int, body: bytes, *, point: str) -> None:
    """Write at the end of an open file, and return once it is on the disk; failpoints `<point>.writing` and `<point>.written`."""
    failpoint(f"{point}.writing")
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)
    failpoint(f"{point}.written")
