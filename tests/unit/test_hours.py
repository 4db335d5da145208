"""The hours of a node: what the wall clock shows counts, minute by minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import UsageError
from freehold.hours import DAY, DAYS, Hours

BERLIN = ZoneInfo("Europe/Berlin")
MINUTES = st.integers(0, DAY - 1)
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)).map(lambda at: at.replace(tzinfo=BERLIN).timestamp())


def shown_in(zone: ZoneInfo) -> Callable[[float], time.struct_time]:
    return lambda now: datetime.fromtimestamp(now, zone).timetuple()


def hours(text: str) -> Hours:
    return Hours(text, local=shown_in(BERLIN))


def at(text: str) -> float:
    """The Unix time of a time in Berlin, the first of two."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def test_without_hours_a_node_always_works() -> None:
    assert hours("").open(at("2026-03-02T12:00")) and hours("  ").back(5.0) == 5.0


@given(MINUTES, MINUTES.map(lambda m: m + 1), TIMES)
def test_a_range_of_every_day(start: int, end: int, now: float) -> None:
    if start == end:
        return
    shown = datetime.fromtimestamp(now, BERLIN)
    minute = 60 * shown.hour + shown.minute
    within = start <= minute < end if start < end else minute >= start or minute < end
    assert hours(f"{clock(start)}-{clock(end)}").open(now) == within


@given(st.integers(0, 6), st.integers(0, 6), MINUTES, MINUTES, TIMES)
def test_a_range_belongs_to_the_day_on_which_it_begins(first: int, last: int, start: int, end: int, now: float) -> None:
    if start == end:
        return
    shown = datetime.fromtimestamp(now, BERLIN)
    minute, days = 60 * shown.hour + shown.minute, {(first + n) % 7 for n in range((last - first) % 7 + 1)}
    begun_today = shown.weekday() in days and minute >= start and (start > end or minute < end)
    begun_yesterday = (shown.weekday() - 1) % 7 in days and start > end and minute < end
    assert hours(f"{DAYS[first]}-{DAYS[last]} {clock(start)}-{clock(end)}").open(now) == (begun_today or begun_yesterday)


@given(st.lists(st.tuples(st.sampled_from(DAYS), MINUTES, MINUTES).filter(lambda r: r[1] != r[2]), min_size=1, max_size=4), TIMES)
def test_ranges_between_commas_add_up(ranges: list[tuple[str, int, int]], now: float) -> None:
    each = [f"{day} {clock(start)}-{clock(end)}" for day, start, end in ranges]
    assert hours(", ".join(each)).open(now) == any(hours(text).open(now) for text in each)


@given(
    st.sampled_from(["22:00-06:00", "mon 09:00-09:01", "sun 02:10-02:50", "sat-sun 00:00-24:00", "fri-mon 23:30-00:10"]), TIMES
)
def test_a_node_is_back_at_the_first_minute_of_its_hours(text: str, now: float) -> None:
    found, back = hours(text), hours(text).back(now)
    assert back >= now and found.open(back)
    if back > now:
        assert back % 60 == 0 and not found.open(now) and not found.open(back - 1)
        steps = range(int(now // 60 + 1), int(back // 60), max(int((back - now) / 60 / 50), 1))
        assert not any(found.open(60.0 * minute) for minute in steps)


def test_the_night_that_has_an_hour_twice() -> None:
    """25 October 2026: at 03:00 it is 02:00 again."""
    before, found = at("2026-10-25T02:30"), hours("02:00-03:00")
    assert found.open(before) and found.open(before + 3600)
    assert not found.open(before + 2 * 3600) and not found.open(before - 3600)
    assert hours("22:00-06:00").back(at("2026-10-25T06:00")) == at("2026-10-25T22:00")


def test_the_day_in_spring_that_lacks_an_hour() -> None:
    """29 March 2026: after 01:59 comes 03:00."""
    before, found = at("2026-03-29T01:59"), hours("02:10-02:50")
    assert not any(found.open(before + 60 * minute) for minute in range(180))
    assert found.back(before) == at("2026-03-30T02:10")
    assert hours("sun 02:10-02:50").back(before) == at("2026-04-05T02:10")
    assert hours("22:00-06:00").open(before + 60) and at("2026-03-29T06:00") - before == timedelta(hours=3, minutes=1).seconds


WRONG = [
    *("22-6", "22:00", "24:00-06:00", "22:00-24:01", "22:60-23:00", "06:00-06:00", "mo 08:00-09:00", "xyz 08:00-09:00", ","),
    *("08:00-09:00,", "mon,tue 08:00-09:00", "mon- 08:00-09:00", "8:00-9:00", "08:00-09:00\n08:00-09:00"),
]


@pytest.mark.parametrize("text", [*WRONG, "\N{ARABIC-INDIC DIGIT ZERO}8:00-09:00"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Hours(text)


@given(st.text(max_size=20))
def test_any_text_is_hours_or_refused(text: str) -> None:
    try:
        found = hours(text)
    except UsageError:
        return
    assert found.open(found.back(1.7e9))
