"""The files of an arena: opened, mapped, and what a full or broken disk is called."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold.errors import ArenaError


def mapped(fd: int, size: int) -> mmap.mmap:
    """A shared mapping; of a whole page where the file is empty, because there are no empty mappings."""
    return mmap.mmap(fd, size) if size else mmap.mmap(-1, mmap.PAGESIZE)


def opened(path: Path) -> int:
    """A file to read and write, made if it is not there; links are not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def anonymous_file(folder: Path) -> int:
    """A file without a name, which is gone with its last user."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """A full or unusable disk as an error that says so."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise ArenaError(
            f"The personal states in {folder} cannot be used: {error.strerror or error}.",
            hint="Make room, and go on with --resume; or choose another folder: --checkpoint DIR."
            if full
            else "Choose another folder: --checkpoint DIR.",
        ) from None


def damaged(folder: Path, why: str) -> ArenaError:
    """The error for an arena that cannot be read."""
    return ArenaError(
        f"The personal states in {folder} are damaged, or of another study: {why}.",
        hint="Run the command without --resume to start anew.",
    )
