"""What was typed, and the command that repeats it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of this run."""
    _typed[:] = arguments


def command(*, resume: bool = False) -> str:
    """The command line that repeats this run from its start, or that goes on where it stopped."""
    arguments = [argument for argument in _typed if argument != "--resume"]
    return shlex.join([*program(sys.argv[0]), *arguments, *(["--resume"] if resume else [])])


def program(invoked: str) -> list[str]:
    """The words that start this program again as they are typed here: its bare name only where the shell would find it."""
    path = Path(invoked)
    if path.name == "__main__.py":
        return [sys.executable, "-m", "freehold.cli"]
    if path.name != "freehold":
        return ["freehold"]  # started by something else, such as a test
    found = shutil.which("freehold")
    return ["freehold"] if found is not None and path.exists() and Path(found).samefile(path) else [invoked]
