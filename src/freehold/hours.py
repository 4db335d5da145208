"""The hours in which a node works, as its owner writes them: "22:00-06:00", "mon-fri 20:00-06:00, sat-sun 00:00-24:00".

What the wall clock shows counts, minute by minute: in the night that has an hour twice, both hours are within.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from freehold.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60
WEEK = 7 * DAY
LONGEST_S = 15 * 86400
"""Within two weeks every range comes, even one that lies in the hour that a day in spring does not have."""

_RANGE = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))? +)?(\d\d):(\d\d) ?- ?(\d\d):(\d\d)", re.ASCII)
_EXAMPLE = 'Write it like this: hours = "22:00-06:00" or "mon-fri 20:00-06:00, sat-sun 00:00-24:00".'


class Hours:
    """Minutes of the week in which a node works; a text that is empty stands for all of them."""

    def __init__(self, text: str, *, local: Callable[[float], time.struct_time] = time.localtime) -> None:
        """`local`: what the wall clock shows at a Unix time. Raises UsageError."""
        self.text, self._local = text.strip(), local
        self._open = bytearray(WEEK) if self.text else bytearray(b"\1" * WEEK)
        for part in self.text.split(",") if self.text else ():
            for start, length in _spans(part.strip()):
                for minute in range(start, start + length):
                    self._open[minute % WEEK] = True

    def open(self, now: float) -> bool:
        """Whether the node works at this Unix time."""
        shown = self._local(now)
        return bool(self._open[shown.tm_wday * DAY + shown.tm_hour * 60 + shown.tm_min])

    def back(self, now: float) -> float:
        """The Unix time from which on the node works, `now` if it does."""
        if self.open(now):
            return now
        minute = now - now % 60 + 60
        return next(at for at in _minutes(minute, now + LONGEST_S) if self.open(at))


def _minutes(first: float, last: float) -> list[float]:
    return [first + 60 * n for n in range(int((last - first) / 60) + 1)]


def _spans(text: str) -> list[tuple[int, int]]:
    """(minute of the week, length) for each day that a range names; one that crosses midnight belongs to the day it begins on."""
    found = _RANGE.fullmatch(text.lower())
    if found is None:
        raise UsageError(f"{text!r} are no hours.", hint=_EXAMPLE)
    first, last, *clock = found.groups()
    start_hour, start_minute, end_hour, end_minute = map(int, clock)
    start, end = 60 * start_hour + start_minute, 60 * end_hour + end_minute
    if start_minute > 59 or end_minute > 59 or start >= DAY or end > DAY:
        raise UsageError(f"{text!r} is no range of a day: it begins at 00:00 to 23:59 and ends at 00:00 to 24:00.", hint=_EXAMPLE)
    if start == end:
        raise UsageError(f"{text!r} is as good as never.", hint="A whole day is 00:00-24:00.")
    unknown = [day for day in (first, last) if day is not None and day not in DAYS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no day.", hint=f"The days are {', '.join(DAYS)}.")
    begins = DAYS.index(first) if first else 0
    count = (DAYS.index(last) - begins) % 7 + 1 if last else 1 if first else 7
    return [((begins + n) % 7 * DAY + start, (end - start) % DAY or DAY) for n in range(count)]
