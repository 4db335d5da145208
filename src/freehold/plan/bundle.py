"""A bundle: the Python files of a task in one text, named by its digest, so that what a plan pins is what runs.

Canonical JSON of path -> content: no links, modes or times, so equal files have equal digests, and there is nothing to unpack
outside of where they are read. Nothing here runs what is in a bundle.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from freehold.errors import BundleUnfit

LIMIT_BYTES: Final = 512 << 10
"""Of a whole bundle."""
MOST_FILES: Final = 200
LONGEST_PATH: Final = 200
MOST_LINES: Final = 400
"""Of a difference that are shown."""
FORMAT: Final = 1
ENTRY: Final = "task.py"
"""Has the function `task()`, which returns a `TaskDefinition`."""

_PATH = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*/){0,8}[A-Za-z_][A-Za-z0-9_-]*\.(py|toml|json|txt)")
_MODULE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z_][A-Za-z0-9_]*\.py")
_IMPORT = re.compile(r"^[ \t]*(?:import|from)[ \t]+([A-Za-z_][\w.]*)", re.MULTILINE)
_TAKEN: Final = frozenset({"freehold", "torch", "numpy"}) | sys.stdlib_module_names
"""Names that a bundle cannot give its own modules: what they mean must not depend on the order of imports."""


def pack(files: Mapping[str, str]) -> bytes:
    """A bundle of these files, path -> text; raises BundleUnfit."""
    _check(files)
    ordered = {path: files[path] for path in sorted(files)}
    text = json.dumps({"files": ordered, "format": FORMAT}, ensure_ascii=False, separators=(",", ":"))
    try:
        body = text.encode()
    except UnicodeEncodeError:
        raise BundleUnfit("A file of the bundle is not UTF-8 text.", hint=_KINDS) from None
    if len(body) > LIMIT_BYTES:
        raise BundleUnfit(f"The bundle has {len(body)} bytes; at most {LIMIT_BYTES} are taken.", hint=_KINDS)
    return body


def digest_of(body: bytes) -> str:
    """`sha256:…` of a bundle, by which plans name it."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def unpack(body: bytes, digest: str) -> Mapping[str, str]:
    """Path -> text. Raises BundleUnfit for other bytes than the digest's, and for what `pack` would not have made."""
    if (found := digest_of(body)) != digest:
        raise BundleUnfit(f"The bundle's digest is {found}, not {digest}.", hint="Fetch it again, or ask who made the plan.")
    if len(body) > LIMIT_BYTES:
        raise BundleUnfit(f"The bundle has {len(body)} bytes; at most {LIMIT_BYTES} are taken.", hint=_KINDS)
    try:
        told = json.loads(body)
        files = told["files"] if set(told) == {"files", "format"} and told["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError, RecursionError):
        files = None
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()) or pack(files) != body:
        raise BundleUnfit("This is no bundle, or not as Freehold writes one.", hint="`freehold bundle FOLDER` makes one.")
    return files


def read_bundle(path: Path) -> bytes:
    """A whole bundle from a file; raises BundleUnfit."""
    try:
        with path.open("rb") as file:
            body = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise BundleUnfit(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions.") from None
    unpack(body, digest_of(body))
    return body


def gather(folder: Path) -> dict[str, str]:
    """The files of a folder, path -> text, without hidden ones and caches. Raises BundleUnfit for links and other kinds."""
    found: dict[str, str] = {}
    total = 0
    for path, entry in _walk(folder, ""):
        if path.partition("/")[0].removesuffix(".py") in _TAKEN:
            raise BundleUnfit(f"{path[:80]!r} has the name of a module that is there already.", hint="Give it another name.")
        if len(found) >= MOST_FILES:
            raise BundleUnfit(f"{folder} has more than {MOST_FILES} files.", hint="Put the code of one task into a folder.")
        if not _PATH.fullmatch(path) or len(path) > LONGEST_PATH:
            raise BundleUnfit(f"{path[:80]!r} cannot be in a bundle.", hint=_KINDS)
        try:
            body = Path(entry.path).read_bytes() if entry.stat(follow_symlinks=False).st_size <= LIMIT_BYTES else b""
            total += entry.stat(follow_symlinks=False).st_size
            found[path] = body.decode()
        except UnicodeDecodeError:
            raise BundleUnfit(f"{path} is not UTF-8 text.", hint=_KINDS) from None
        except OSError as error:
            raise BundleUnfit(f"{path} cannot be read: {error.strerror}.", hint="Check its owner and mode.") from None
        if total > LIMIT_BYTES:
            raise BundleUnfit(
                f"{folder} has more than {LIMIT_BYTES} bytes.", hint="Data and weights do not belong into a bundle."
            )
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs between two bundles, as a unified diff file by file; cut after MOST_LINES lines, and said so."""
    lines: list[str] = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        lines.append(f"{'new' if old is None else 'gone' if new is None else 'changed'}: {path}")
        diff = difflib.unified_diff((old or "").splitlines(), (new or "").splitlines(), lineterm="", n=1)
        lines += [line for line in diff if not line.startswith(("---", "+++"))]
    if len(lines) > MOST_LINES:
        return [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} lines more"]
    return lines


def imported(files: Mapping[str, str]) -> list[str]:
    """What its files import by name from outside of the bundle, sorted. Code may import in other ways: this only informs."""
    own = {path.partition("/")[0].removesuffix(".py") for path in files}
    every = {name.partition(".")[0] for path, text in files.items() if path.endswith(".py") for name in _IMPORT.findall(text)}
    return sorted(every - own - {"__future__"})


def _check(files: Mapping[str, str]) -> None:
    if ENTRY not in files:
        raise BundleUnfit(f"The bundle has no {ENTRY}.", hint=f"{ENTRY} has the function task(), which returns a TaskDefinition.")
    if len(files) > MOST_FILES:
        raise BundleUnfit(f"The bundle has {len(files)} files; at most {MOST_FILES} are taken.", hint=_KINDS)
    for path in files:
        good = _PATH.fullmatch(path) and len(path) <= LONGEST_PATH
        if not good or (path.endswith(".py") and not _MODULE.fullmatch(path)):
            raise BundleUnfit(f"{path[:80]!r} cannot be in a bundle.", hint=_KINDS)
    folded = {path.lower() for path in files}
    modules = {path.removesuffix(".py") for path in files if path.endswith(".py")}
    folders = {path[:at] for path in files for at, letter in enumerate(path) if letter == "/"}
    if len(folded) < len(files) or modules & folders:
        raise BundleUnfit("Two names in the bundle mean the same module or differ by case alone.", hint="Rename one of them.")


def _walk(folder: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    except OSError as error:
        raise BundleUnfit(f"{folder} cannot be read: {error.strerror}.", hint="Give the folder that has task.py.") from None
    for entry in entries:
        if entry.name == "__pycache__" or entry.name.startswith("."):
            continue
        path = f"{below}{entry.name}"
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), f"{path}/")
        elif stat.S_ISREG(mode):
            yield path, entry
        else:
            raise BundleUnfit(f"{path[:80]!r} is a link or a device.", hint="A bundle has regular files only.")


_KINDS = "Files are text: .py, .toml, .json or .txt; names have letters, digits, _ and -, no dots and no leading digit."
