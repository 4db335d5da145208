"""What a node that takes nothing costs: its connection, and no more."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from freehold.coordinator.app import App
from freehold.events import silent
from freehold.wire.ingest import Ingest, Pace

SIZE_BYTES = 64 << 20
"""More than the buffers of two sockets hold."""


def test_a_node_that_does_not_take_its_bytes_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_bytes(bytes(SIZE_BYTES))
    opened: list[int] = []

    async def opened_blob(sha256: str) -> int:
        opened.append(os.open(tmp_path / "blob", os.O_RDONLY))
        return opened[0]

    monkeypatch.setattr(App, "_node", lambda self, request: SimpleNamespace(name="alice"))
    parts: dict[str, Any] = {
        "enrolment": None,
        "administration": SimpleNamespace(answers=dict),
        "studies": SimpleNamespace(intake=SimpleNamespace(shows=lambda node, sha256: True)),
        "store": SimpleNamespace(opened=opened_blob),
        "presence": None,
        "witness": None,
        "ingest": Ingest(tmp_path / "spool", pace=Pace(chunk_s=0.2)),
        "peers": None,
        "replaced": lambda node, last: None,
        "tell": silent,
    }

    async def scenario() -> None:
        runner = web.AppRunner(App(**parts).build())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(f"GET /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        got = 0
        # asyncio stops reading from the socket while nobody takes what it has; so nothing is taken until the other side is gone.
        while runner.server.connections != []:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(1 << 20), 60):
                got += len(piece)
            raise ConnectionResetError  # an end is as good
        assert got < SIZE_BYTES
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])
        writer.close()
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 120))
