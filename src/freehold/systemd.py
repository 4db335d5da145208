"""What systemd wants to hear of a service of Type=notify: that it is ready, that it stops, that its event loop still turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Tells systemd, where NOTIFY_SOCKET is set; elsewhere it does nothing."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1e6 if meant and usec.isdigit() and self._path else 0.0
        """How long the service may be silent; 0: as long as it likes."""

    def ready(self, status: str) -> None:
        """The service answers."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """The service ends by itself soon."""
        self._send("STOPPING=1")

    async def watch(self) -> None:
        """Say, from the event loop and as long as that turns, that the service lives. Returns at once without a watchdog."""
        while self.watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)

    def _send(self, text: str) -> None:
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(text.encode(), address)
