"""What systemd is told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.systemd import Notifier


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "notify"))
        reader.settimeout(10)
        yield reader, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def test_ready_and_stopping_are_told(listening: tuple[socket.socket, dict[str, str]]) -> None:
    reader, environ = listening
    notifier = Notifier(environ, os.getpid())
    notifier.ready("well")
    notifier.stopping()
    assert reader.recv(1000).decode().splitlines()[:2] == ["READY=1", "STATUS=well"]
    assert reader.recv(1000) == b"STOPPING=1"


def test_the_event_loop_feeds_the_watchdog(listening: tuple[socket.socket, dict[str, str]]) -> None:
    reader, environ = listening
    notifier = Notifier({**environ, "WATCHDOG_USEC": "30000"}, os.getpid())

    async def twice() -> list[bytes]:
        watching = asyncio.create_task(notifier.watch())
        found = [await asyncio.to_thread(reader.recv, 100) for _ in range(2)]
        watching.cancel()
        return found

    assert asyncio.run(twice()) == [b"WATCHDOG=1"] * 2


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({}, 1)
    notifier.ready("well")
    asyncio.run(notifier.watch())
    assert notifier.watchdog_s == 0.0


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 2).watchdog_s == 0.0
