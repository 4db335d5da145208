"""Where text goes: tables to standard output; progress, errors and hints to standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from freehold.cli.invocation import command
from freehold.errors import FreeholdError

if TYPE_CHECKING:
    from rich.console import Console

ERRORS_PAGE = "docs/reference/errors.md"


def output() -> Console:
    """The console of standard output; no color if NO_COLOR is set or if it is no terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def errors() -> Console:
    """The console of standard error."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def visible(text: str) -> str:
    """`text` with characters that could steer a terminal replaced; line ends stay."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def report_error(error: FreeholdError) -> None:
    """Print an error's number, what was found, what to do and where it is explained."""
    console = errors()
    console.print(f"error {error.code}: {visible(error.message)}", style="red")
    if error.hint:
        console.print(f"hint: {visible(error.hint)}")
    console.print(f"see: {ERRORS_PAGE}, {error.code}", style="dim")


def interrupted(stop: KeyboardInterrupt) -> None:
    """Say that the run was stopped, and how to go on, if it left a checkpoint."""
    console = errors()
    checkpoint = getattr(stop, "checkpoint", None)
    if checkpoint is None:
        console.print("Interrupted; nothing was written.")
        return
    console.print(f"Interrupted. What is done is kept in {checkpoint}. Go on with:")
    console.print(f"  {command(resume=True)}")
