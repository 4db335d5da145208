"""What happens, told as data: a constant name and its fields. Progress bars, log lines and trackers read the same events."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

__all__ = ["Event", "Field", "Listener", "silent"]

Field = str | int | float | bool


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that happened: `Event("round.closed", {"round": 7, "heard": 18, "asked": 20})`.

    `name` is a constant, `noun.verb`; what varies is in `fields`, times in seconds (`_s`) and sizes in bytes (`_bytes`).
    Data, parameters and secrets are never in a field.
    """

    name: str
    fields: dict[str, Field] = {}


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listen to nothing: the default where a `Listener` is asked for."""
