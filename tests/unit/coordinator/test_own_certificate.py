"""The coordinator's own certificate: renewed while it runs, and shown to whoever connects from then on."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from pathlib import Path

from freehold.coordinator.service import Service, Settings
from freehold.events import Event

DAY_S = 86_400.0


class Clock:
    """Stands still but for what is slept; each sleep takes a turn of the event loop."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def shown(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as tls:
        found = tls.getpeercert(True)
    assert found is not None
    return found


def test_it_is_renewed_at_two_thirds_of_its_life() -> None:
    asyncio.run(_renewed())


async def _renewed() -> None:
    clock = Clock(1_800_000_000.0)
    renewed, at = asyncio.Event(), list[float]()

    def listen(event: Event) -> None:
        if event.name == "certificate.renewed":
            at.append(clock.now - 1_800_000_000.0)
            renewed.set()

    with tempfile.TemporaryDirectory(prefix="fh-") as folder:
        held = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await held.wait()
            await clock.sleep(seconds)

        settings = Settings(state=Path(folder), port=0, federation="test")
        service = Service(settings=settings, clock=clock, sleep=sleep, listener=listen)
        await service.start()
        try:
            port = int(service.url.rpartition(":")[2])
            first = await asyncio.to_thread(shown, port)
            assert await asyncio.to_thread(shown, port) == first
            held.set()
            await asyncio.wait_for(renewed.wait(), 30)
            held.clear()
            assert 19.9 * DAY_S < at[0] < 20.1 * DAY_S
            assert await asyncio.to_thread(shown, port) != first
        finally:
            await service.stop()
