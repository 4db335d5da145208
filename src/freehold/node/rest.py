"""When a node rests because its owner says so: outside of its hours, and while its connection is metered."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold.errors import Resting, UsageError
from freehold.hours import Hours
from freehold.node.metered import Metered


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Why a node rests, and until when."""

    kind: Literal["hours", "metered"]
    why: str
    until: float | None
    """Unix time; None where nobody knows."""

    def error(self) -> Resting:
        """What the coordinator is told. The time is UTC: it may be elsewhere."""
        when = "nobody knows when" if self.until is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.until))
        return Resting(f"The node rests: {self.why}; it is back: {when}.", hint="Nothing is wrong: its owner wants it so.")


class Rules:
    """The owner's rules for when the node works."""

    def __init__(self, hours: Hours | None = None, metered: Callable[[], bool] | None = None) -> None:
        """`metered` says whether the connection is; None: work on any. Without rules a node always works."""
        self._hours, self._metered = hours or Hours(""), metered

    def rest(self, now: float) -> Rest | None:
        """Why the node rests at this Unix time; None if it works."""
        if not self._hours.open(now):
            return Rest(kind="hours", why=f"its hours are {self._hours.text}", until=self._hours.back(now))
        if self._metered is not None and self._metered():
            return Rest(kind="metered", why="its connection is metered", until=None)
        return None


def rules_of(hours: str, metered: str) -> Rules:
    """The rules as the settings file says them; raises UsageError."""
    if metered not in ("", "never", "always"):
        raise UsageError(f"metered is {metered!r}.", hint='It is "never" or "always": whether to work on a metered connection.')
    return Rules(Hours(hours), None if metered == "always" else Metered())


def rest_now(settings: Path, now: float) -> Rest | None:
    """Why a node that runs with this settings file rests at this Unix time. The node itself has refused what is wrong in it."""
    try:
        said = tomllib.loads(settings.read_text(encoding="utf-8"))
        return rules_of(str(said.get("hours", "")), str(said.get("metered", ""))).rest(now)
    except (OSError, ValueError, UsageError):
        return None
