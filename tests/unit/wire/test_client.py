"""What the client does without a coordinator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from freehold import errors
from freehold.errors import CoordinatorError, Late, Unreachable, UsageError, WireError
from freehold.wire import client
from freehold.wire.client import retry
from freehold.wire.messages import Problem, encode


class Attempts:
    """Fails a number of times; its clock moves when it waits."""

    def __init__(self, failures: int) -> None:
        self.now, self.failures = 0.0, failures
        self.pauses: list[float] = []

    def __call__(self) -> str:
        if self.failures:
            self.failures -= 1
            raise Unreachable("nobody there")
        return "answer"

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause

    def retried(self, **options: float) -> str:
        return retry(self, sleep=self.sleep, random=lambda: 0.5, clock=lambda: self.now, **options)


def test_pauses_double_up_to_the_longest_with_full_jitter() -> None:
    attempts = Attempts(6)
    assert attempts.retried(most_s=10.0) == "answer"
    assert attempts.pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_without_a_failure_nobody_waits() -> None:
    attempts = Attempts(0)
    assert attempts.retried() == "answer"
    assert attempts.pauses == []


def test_what_takes_too_long_is_given_up_without_a_last_wait() -> None:
    attempts = Attempts(10**6)
    with pytest.raises(Unreachable):
        attempts.retried(give_up_s=5.0)
    assert attempts.pauses == [0.5, 1.0, 2.0]


def test_what_the_coordinator_refuses_is_not_tried_again() -> None:
    def refused() -> None:
        raise Late("closed")

    with pytest.raises(Late):
        retry(refused, sleep=lambda _: pytest.fail("waited"), random=lambda: 0.5, clock=lambda: 0.0)


def all_kinds(kind: type[errors.FreeholdError] = errors.FreeholdError) -> list[type[errors.FreeholdError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in all_kinds(child))]


@pytest.mark.parametrize("kind", [kind for kind in all_kinds() if kind.__module__ == errors.__name__])
def test_a_problem_becomes_its_error_unless_the_coordinator_has_no_say_in_it(kind: type[errors.FreeholdError]) -> None:
    found = client._refusal(400, encode(Problem(code=kind.code, message="m", hint="h")))
    may = kind.code == 114 or 400 <= kind.code < 600
    assert type(found) is (kind if may else CoordinatorError)
    assert (found.message, found.hint) == ("m", "h")


def test_a_problem_cannot_write_to_the_terminal() -> None:
    found = client._refusal(400, encode(Problem(code=9999, message="\x1b[2Jgone\n" + "x" * 5000)))
    assert type(found) is CoordinatorError
    assert found.message.startswith("[2Jgonexxx")
    assert len(found.message) < 2000


@pytest.mark.parametrize(("status", "kind"), [(502, Unreachable), (404, WireError)])
def test_an_answer_that_is_no_problem_is_named_by_its_status(status: int, kind: type[Exception]) -> None:
    assert type(client._refusal(status, b"<html>")) is kind


@pytest.mark.parametrize("module", ["client", "messages", "routes", "openapi", "local"])
def test_what_the_agent_loads_is_light(module: str) -> None:
    heavy = ("numpy", "aiohttp", "cryptography", "safetensors", "zstandard", "asyncio", "torch")
    code = f"import sys, freehold.wire.{module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("localhost:8443", "Say https://localhost:8443."),
        ("fl.example.org", "Say https://fl.example.org."),
        ("http://fl.example.org", "It looks like https://host:port."),
        ("https://", "It looks like https://host:port."),
        ("https://host:port", "It looks like https://host:port."),
        ("https://host/path", "It looks like https://host:port."),
    ],
)
def test_what_is_no_address_has_a_hint(url: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        client.parts_of(url)
    assert caught.value.hint == hint


def test_an_address_is_host_and_port() -> None:
    assert client.parts_of("https://fl.example.org:8443/") == ("fl.example.org", 8443)
    assert client.parts_of("https://[::1]") == ("::1", 443)
