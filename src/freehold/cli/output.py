"""Files that a command writes: refused before the work if they cannot be written, and replaced as a whole after it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from freehold.errors import UsageError

STDOUT = Path("-")


def check_writable(*paths: Path | None) -> None:
    """Raise UsageError, before anything is computed, for a destination that cannot be written or stands twice."""
    named = [path for path in paths if path is not None]
    for path in named:
        if path == STDOUT:
            continue
        folder = Path(os.path.realpath(path)).parent
        _refuse_too_long(path)
        if path.is_dir():
            raise UsageError(f"{path} is a folder, but a file is to be written.", hint=f"Say {path / 'NAME'}.")
        if not folder.is_dir():
            raise UsageError(f"{path} cannot be written: there is no folder {folder}.", hint="Make it first, or write elsewhere.")
        if not os.access(path if _special(path) else folder, os.W_OK):
            raise UsageError(f"{path} cannot be written: you may not write to {folder}.", hint="Write to a folder of yours.")
    places = [os.path.realpath(path) for path in named]
    if len(set(places)) < len(places):
        raise UsageError("Two results would be written to the same file.", hint="Give each a name of its own.")


def check_empty(folder: Path | None, *, started: bool) -> None:
    """Raise UsageError, before anything is computed, where many files are to be written and there are others, or may not be any.

    `started`: an earlier run may have begun.
    """
    if folder is None:
        return
    _refuse_too_long(folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{folder} cannot be written: you may not write to {there}.", hint="Write to a folder of yours.")
    if there == folder.absolute() and not started and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", hint="Name a folder that is empty, or is not there yet.")


def _refuse_too_long(path: Path) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        said = f"{str(path)[:200]}… ({len(str(path))} characters)" if len(str(path)) > 200 else str(path)
        raise UsageError(f"{said} cannot be written: {error.strerror}.", hint="Give another, shorter path.") from None


def write(path: Path, text: str) -> None:
    """Write `text`, UTF-8: all of it or nothing. "-" is standard output."""
    if path == STDOUT:
        sys.stdout.write(text)
        return
    try:
        if _special(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(Path(os.path.realpath(path)), text)
    except OSError as error:
        raise UsageError(f"{path} could not be written: {error.strerror}.", hint="Free some space, or write elsewhere.") from None


def _special(path: Path) -> bool:
    """A pipe, a terminal, /dev/null: nothing to replace."""
    return path.exists() and not path.is_file()


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".freehold-{os.getpid()}.new")  # not made of the name, which may have all the length there is
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
