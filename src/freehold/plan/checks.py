"""Single values of a plan, checked: each message names the dotted path, what was found and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from freehold.errors import PlanError, PlanVersion, UnknownKey, near_miss

FORMAT: Final = 1
"""The format version that this Freehold reads and writes. Within a format, no default ever changes."""

MOST_EPOCHS: Final = 10_000
MOST_STEPS: Final = 100_000
"""Work of one round: its batches are drawn before it begins, so a slip of the keyboard must not ask for all memory."""

OPTIONS: Final = {"clients": "a whole number from 1", "partition": "text", "schema": "text"}
"""What `task.options` may say."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_format(found: object) -> None:
    """Raise `PlanVersion` unless `found` is this Freehold's format."""
    if isinstance(found, bool) or found != FORMAT:
        raise PlanVersion(
            f"The plan has format {shown(found)}; this Freehold reads format {FORMAT}.",
            hint="Install the Freehold that wrote it, or write the plan anew.",
        )


def check_digest(path: str, text: str) -> None:
    """Raise `PlanError` unless `text` is a sha256 digest."""
    if not _DIGEST.fullmatch(text):
        raise PlanError(
            f"{path} is {shown(text)}, but a digest is `sha256:` and 64 hexadecimal digits.",
            hint="Copy it whole, or leave it out while the plan is tried in the simulator.",
        )


def check_name(path: str, name: str) -> None:
    """Raise `PlanError` unless `name` can name a file, an entry point and a line of a report."""
    if not _NAME.fullmatch(name):
        raise PlanError(
            f"{path} is {shown(name)}, which is no name.",
            hint="A name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit.",
        )


def check_least(path: str, value: int, least: int) -> None:
    """Raise `PlanError` when `value` is below `least`."""
    if value < least:
        raise PlanError(f"{path} is {value}, but must be at least {least}.", hint=f"Raise {path}.")


def check_range(path: str, value: int, low: int, high: int) -> None:
    """Raise `PlanError` unless `value` lies in [`low`, `high`]."""
    if not low <= value <= high:
        raise PlanError(f"{path} is {value}, but must lie between {low} and {high}.", hint=f"Choose another {path}.")


def check_positive(path: str, value: float) -> None:
    """Raise `PlanError` unless `value` is finite and above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise PlanError(f"{path} is {value}, but must be a finite number above 0.", hint=f"Raise {path}, or leave it out.")


def check_work(path: str, epochs: int | None, steps: int | None) -> None:
    """Raise `PlanError` unless exactly one of `epochs` and `steps` is there, and in its range."""
    if (epochs is None) == (steps is None):
        found = "neither epochs nor steps" if epochs is None else "both epochs and steps"
        raise PlanError(f"{path} has {found}, but needs one of the two.", hint=f"Keep one of {path}.epochs and {path}.steps.")
    for name, value, most in (("epochs", epochs, MOST_EPOCHS), ("steps", steps, MOST_STEPS)):
        if value is not None:
            check_range(f"{path}.{name}", value, 1, most)


def check_options(options: Mapping[str, object]) -> None:
    """Raise `PlanError` for an option that nobody reads, of another type, or without the one that it belongs to."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise UnknownKey(f"Nobody reads {shown(f'task.options.{name}')}.", hint=near_miss(name, OPTIONS))
        counts = type(value) is int and value >= 1
        if not (counts if name == "clients" else isinstance(value, str) and value):
            raise PlanError(
                f"task.options.{name} is {shown(value)}, but must be {OPTIONS[name]}.", hint="Correct it, or leave it out."
            )
    if ("clients" in options) != ("partition" in options):
        there, lacking = ("clients", "partition") if "clients" in options else ("partition", "clients")
        raise PlanError(
            f"task.options has {there}, but no {lacking}; the two belong together.",
            hint='For instance clients = 20, partition = "dirichlet:0.1".',
        )


def dotted(path: str, key: str) -> str:
    """The path of `key` in the table at `path`; "" is the top."""
    return f"{path}.{key}" if path else key


def shown(value: object) -> str:
    """A value from outside, in quotes and of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
