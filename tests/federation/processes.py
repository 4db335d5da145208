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
import threading
import time
from collections.abc import Callable
from pathlib import Path

from freehold.events import Event
from freehold.testing import forkserver
from freehold.wire.process import spawn as start_anew

PATHS = ("server_cert", "server_key", "issuer_cert", "issuer_key", "client_ca", "root_ca")
spawn = forkserver.spawn if forkserver.VARIABLE in os.environ else start_anew


def tell(event: Event) -> None:
    print(json.dumps({"event": event.name, **event.fields}), flush=True)


async def coordinator(state: str, port: str, settings: str) -> None:
    from freehold.coordinator import migrate, run, store
    from freehold.coordinator.ownca import OwnCertificates
    from freehold.coordinator.service import Service, Settings
    from freehold.wire import ingest

    given = json.loads(settings)
    store.INLINE_BYTES = given.pop("inline_bytes", store.INLINE_BYTES)
    ingest.SMALL_BYTES = given.pop("small_bytes", ingest.SMALL_BYTES)  # type: ignore[misc]
    if "migrations" in given:
        migrate._FOLDER, migrate.LATEST = Path(given.pop("migrations")), "later"
    run.HEAVY_BYTES = given.pop("heavy_bytes", run.HEAVY_BYTES)
    ahead_s = given.pop("clock_ahead_s", 0.0)
    pace = ingest.Pace(**given.pop("pace", {}))
    around = {key: given.pop(key) for key in ("idle_s", "poll_s", "node_life_s", "person_life_s", "lease_s") if key in given}
    files = OwnCertificates(**{key: Path(given.pop(key)) for key in PATHS if key in given})
    if "study_keys" in given:
        given["study_keys"] = tuple(map(Path, given["study_keys"]))
    service = Service(
        settings=Settings(state=Path(state), port=int(port), federation="test", **given, own=files),
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


def node(name: str, state: str, url: str, token: str, data: str, dataset: str, settings: str) -> None:
    from freehold.node.join import read_token
    from freehold.node.rest import rules_of
    from freehold.node.service import Service, Settings, Stopped, stop_when_told
    from freehold.policy import sample_policy

    rules = Path(state) / "policy.toml"
    if not rules.exists():
        rules.parent.mkdir(mode=0o700, exist_ok=True)
        rules.write_text(sample_policy(dataset))
    known = read_token(token) if Path(token).exists() else None
    given = json.loads(settings)
    service = Service(
        Settings(
            name=name,
            state=Path(state),
            coordinator=url,
            token=known,
            datasets={dataset: Path(data)},
            rules=rules_of(given.get("hours", ""), given.get("metered", "always")),
            tpm=given.get("tpm", ""),
            sandbox=given.get("sandbox", "off"),  # the fork server's trainers are in none
        ),
        listener=tell,
        spawn=spawn,
        **(shifted(Path(given["clock"])) if "clock" in given else {}),
    )
    stop_when_told()
    with contextlib.suppress(Stopped):
        service.run()


def shifted(shift: Path) -> dict[str, Callable[[float], object] | Callable[[], float]]:
    """A clock that is as many seconds ahead as a file says, and a sleep that ends when the file changes."""

    def sleep(seconds: float) -> None:
        before, ends, pause = shift.read_text(), time.monotonic() + seconds, threading.Event()
        while shift.read_text() == before and time.monotonic() < ends:
            pause.wait(0.02)

    return {"clock": lambda: time.time() + float(shift.read_text()), "sleep": sleep}


if __name__ == "__main__":
    if sys.argv[1] == "coordinator":
        asyncio.run(coordinator(*sys.argv[2:]))
    else:
        node(*sys.argv[2:])
