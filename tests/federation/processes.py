"""`python -m tests.federation.processes coordinator|node …`: the processes that the tests start, kill and start again.

Each event is a JSON line on standard output. With FREEHOLD_FORKSERVER, children come from a fork server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from freehold.events import Event
from freehold.testing import forkserver
from freehold.wire.process import spawn as start_anew

spawn = forkserver.spawn if forkserver.VARIABLE in os.environ else start_anew


def tell(event: Event) -> None:
    print(json.dumps({"event": event.name, **event.fields}), flush=True)


async def coordinator(state: str, port: str, settings: str) -> None:
    from freehold.coordinator import run, store
    from freehold.coordinator.service import Service, Settings
    from freehold.wire.ingest import Pace

    given = json.loads(settings)
    store.INLINE_BYTES = given.pop("inline_bytes", store.INLINE_BYTES)
    run.HEAVY_BYTES = given.pop("heavy_bytes", run.HEAVY_BYTES)
    ahead_s = given.pop("clock_ahead_s", 0.0)
    pace = Pace(**given.pop("pace", {}))
    around = {key: given.pop(key) for key in ("idle_s", "poll_s", "node_life_s") if key in given}
    service = Service(
        settings=Settings(state=Path(state), port=int(port), federation="test", **given),
        clock=lambda: time.time() + ahead_s,
        listener=tell,
        spawn=spawn,
        pace=pace,
        **around,
    )
    await service.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await service.stop()


def node(name: str, state: str, url: str, token: str, data: str, dataset: str) -> None:
    from freehold.node.join import read_token
    from freehold.node.service import Service, Settings, Stopped, stop_when_told

    known = read_token(token) if Path(token).exists() else None
    settings = Settings(name=name, state=Path(state), coordinator=url, token=known, datasets={dataset: Path(data)})
    service = Service(settings, listener=tell, spawn=spawn)
    stop_when_told()
    with contextlib.suppress(Stopped):
        service.run()


if __name__ == "__main__":
    if sys.argv[1] == "coordinator":
        asyncio.run(coordinator(*sys.argv[2:]))
    else:
        node(*sys.argv[2:])
