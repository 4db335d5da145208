"""Ports for servers that tests start, and start again."""

from __future__ import annotations

import random
import socket

_ROOM = range(15_000, 32_000)
"""Below those that the kernel gives to connections going out: one of these could take a server's port while it is away."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(_ROOM)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
