from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freehold.coordinator.attempts import Attempts


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_no_more_failures_pass_than_the_burst_and_what_time_gave_back(gaps: list[float]) -> None:
    clock = Clock()
    attempts = Attempts(clock, burst=3, every_s=10.0)
    passed = 0
    for gap in gaps:
        clock.now += gap
        if not attempts.wait_s("192.0.2.1"):
            attempts.failed("192.0.2.1")
            passed += 1
    assert passed <= 3 + sum(gaps) / 10


def test_the_wait_it_names_is_enough_and_no_longer_than_needed() -> None:
    clock = Clock()
    attempts = Attempts(clock, burst=2, every_s=10.0)
    for _ in range(2):
        attempts.failed("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 10
    clock.now += 7.5
    assert attempts.wait_s("192.0.2.1") == 2.5
    clock.now += 2.5
    assert attempts.wait_s("192.0.2.1") == 0


def test_addresses_are_counted_apart_and_those_of_one_ipv6_network_together() -> None:
    attempts = Attempts(Clock(), burst=1)
    attempts.failed("2001:db8::1")
    assert attempts.wait_s("2001:db8::2")
    assert not attempts.wait_s("2001:db8:0:1::1")
    assert not attempts.wait_s("192.0.2.1")
    attempts.failed("a Unix socket")
    assert attempts.wait_s("a Unix socket")


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    attempts = Attempts(Clock(), burst=1, addresses=2)
    for last in range(3):
        attempts.failed(f"192.0.2.{last}")
    assert [bool(attempts.wait_s(f"192.0.2.{last}")) for last in range(3)] == [False, True, True]


def test_a_clock_that_goes_back_forgives_nothing() -> None:
    clock = Clock()
    attempts = Attempts(clock, burst=1, every_s=10.0)
    attempts.failed("192.0.2.1")
    clock.now -= 1000
    assert attempts.wait_s("192.0.2.1") == 10
