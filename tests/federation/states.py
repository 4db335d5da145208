"""States as they lie on the disk of a coordinator and of a node."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from safetensors.torch import load
from torch import Tensor

from freehold.coordinator.store import connect
from freehold.coordinator.study_tables import blobs, runs
from tests.federation.harness import Federation


def server_state(federation: Federation, run: str, *, url: str = "", objects: Path | None = None) -> dict[str, Tensor]:
    """The server state of a run, from the coordinator's store; `url` and `objects` if these are not in its folder."""
    engine = connect(url or f"sqlite:///{federation.folder / 'coordinator' / 'coordinator.sqlite'}")
    with engine.connect() as connection:
        found = sa.select(blobs.c.body, blobs.c.place).join(runs, runs.c.server == blobs.c.sha256).where(runs.c.id == run)
        body, place = connection.execute(found).one()
    engine.dispose()
    if body is None:
        body = ((objects or federation.folder / "coordinator" / "blobs") / place).read_bytes()
    return load(bytes(body))


def personal_state(federation: Federation, node: str, run: str) -> dict[str, Tensor]:
    """The committed personal state of a run, from a node's vault."""
    engine = connect(f"sqlite:///{federation.folder / node / 'vault' / 'vault.sqlite'}")
    with engine.connect() as connection:
        query = sa.text("select body from personal where run = :run and phase = 'committed'")
        body = connection.execute(query, {"run": run}).scalar_one()
    engine.dispose()
    return load(bytes(body))
