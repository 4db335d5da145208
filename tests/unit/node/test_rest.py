"""When a node rests: its hours and its connection, asked of real programs on PATH."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from freehold.cli.node import node
from freehold.errors import Resting, UsageError
from freehold.hours import Hours
from freehold.node.__main__ import facts, options_of
from freehold.node.agent import Agent
from freehold.node.control import Control
from freehold.node.metered import KEPT_S, Metered, ask
from freehold.node.page import Page
from freehold.node.rest import Rules, rest_now, rules_of
from freehold.node.service import Service, Settings
from freehold.node.upstream import Upstream
from freehold.wire.client import Connection, trusting

NOON = 1_790_000_000.0 - 1_790_000_000.0 % 86400 + 12 * 3600


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(("said", "metered"), [("u 0", False), ("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False)])
def test_what_networkmanager_says(programs: Path, said: str, metered: bool) -> None:
    program(programs, "busctl", f'[ "$5" = org.freedesktop.NetworkManager ] && [ "$8" = Metered ] && echo "{said}"')
    assert ask() is metered


def test_where_there_is_no_busctl(programs: Path) -> None:
    program(programs, "dbus-send", 'echo "   variant       uint32 1"')
    assert ask() is True


def test_where_nobody_can_be_asked_it_is_not_metered(programs: Path) -> None:
    assert ask() is False
    program(programs, "busctl", "echo 'Failed to get property: The name is not activatable' >&2; exit 1")
    program(programs, "dbus-send", "echo nonsense 1")
    assert ask() is False


def test_it_is_asked_at_most_once_a_minute(programs: Path) -> None:
    program(programs, "busctl", f"echo x >> {programs}/asked; echo u 1")
    now = 0.0
    metered = Metered(clock=lambda: now)
    assert [metered() for _ in range(3)] == [True] * 3
    assert (programs / "asked").read_text() == "x\n"
    now = KEPT_S
    program(programs, "busctl", f"echo x >> {programs}/asked; echo u 2")
    assert metered() is False and (programs / "asked").read_text() == "x\n" * 2


def test_the_program_is_not_asked_outside_of_the_hours() -> None:
    def never() -> bool:
        raise AssertionError

    rest = Rules(Hours("22:00-06:00", local=time.gmtime), never).rest(NOON)
    assert rest is not None and rest.kind == "hours" and rest.until == NOON + 10 * 3600


def test_hours_and_connection_both_count() -> None:
    at_night = Rules(Hours("22:00-06:00", local=time.gmtime), lambda: True).rest(NOON + 11 * 3600)
    assert at_night is not None and (at_night.kind, at_night.until) == ("metered", None)
    assert Rules(Hours("22:00-06:00", local=time.gmtime), lambda: False).rest(NOON + 11 * 3600) is None
    assert Rules().rest(NOON) is None


def test_the_coordinator_is_told_when_the_node_is_back() -> None:
    rest = Rules(Hours("22:00-06:00", local=time.gmtime)).rest(NOON)
    assert rest is not None
    error = rest.error()
    assert isinstance(error, Resting) and error.code == 320
    assert time.strftime("%Y-%m-%d 22:00 UTC", time.gmtime(NOON)) in error.message


def test_by_default_a_node_rests_on_a_metered_connection(programs: Path) -> None:
    program(programs, "busctl", "echo u 1")
    assert [rules_of("", said).rest(NOON) is not None for said in ("", "never", "always")] == [True, True, False]
    with pytest.raises(UsageError):
        rules_of("", "sometimes")


# What the owner sees.


def test_page_and_command_line_say_why_it_rests_and_until_when(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "node.toml").write_text('hours = "22:00-06:00"\nmetered = "always"\n')
    options = options_of(["--name", "alice", "--state", str(tmp_path)], {})
    service = Service(Settings(name="alice", state=tmp_path))
    service.agent = Agent(
        Upstream(Connection("https://localhost:1", trusting("")), Control(tmp_path)),
        node="alice",
        state=tmp_path,
        datasets={},
        url="https://localhost:1",
    )
    service.agent.status.state = "connected"
    service.agent.status.rest = options.rules.rest(at_local(12))
    told = facts(options, service)
    assert (told["state"], told["rest"]) == ("resting", {"why": "its hours are 22:00-06:00", "until": at_local(22)})
    page = Page(0, lambda: told, tmp_path)
    try:
        (tmp_path / "page.json").write_text(json.dumps({"url": page.url, "pid": 1}))
        shown = CliRunner().invoke(node, ["status", "--state", str(tmp_path)])
        said = [page.answer(path, f"127.0.0.1:{page.port}") for path in ("/", "/readyz", "/status.json")]
    finally:
        page.close()
    assert shown.exit_code == 0 and "resting" in shown.output and "its hours are 22:00-06:00" in " ".join(shown.output.split())
    assert b"It rests until" in said[0][2] and b"its hours are 22:00-06:00" in said[0][2]
    assert said[1][0] == 200 and json.loads(said[2][2])["rest"]["until"] == at_local(22)


def at_local(hour: int) -> float:
    day = time.localtime(NOON)
    return time.mktime((day.tm_year, day.tm_mon, day.tm_mday, hour, 0, 0, 0, 0, -1))


def test_a_node_without_a_page_is_judged_by_its_settings_file(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('hours = "12:00-12:01"\nmetered = "always"\n')
    rest = rest_now(tmp_path / "node.toml", at_local(11))
    assert rest is not None and (rest.why, rest.until) == ("its hours are 12:00-12:01", at_local(12))
    assert rest_now(tmp_path / "node.toml", at_local(12)) is None
    assert rest_now(tmp_path / "none.toml", at_local(12)) is None
