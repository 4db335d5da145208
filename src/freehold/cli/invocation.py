"""What was typed, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of this run."""
    _typed[:] = arguments


def command(*, resume: bool = False) -> str:
    """The command line that repeats this run from its start, or that goes on where it stopped."""
    arguments = [argument for argument in _typed if argument != "--resume"]
    return shlex.join(["freehold", *arguments, *(["--resume"] if resume else [])])
