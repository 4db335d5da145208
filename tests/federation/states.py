"""States as they lie on the disk of a coordinator and of a node."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from safetensors.torch import load
from torch import Tensor, stack

from freehold.coordinator.store import connect
from freehold.coordinator.study_tables import blobs, contributions, runs
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


def in_step(federation: Federation, run: str, nodes: Sequence[str], server: dict[str, Tensor] | None = None) -> None:
    """Nothing comes to be pending in any vault, and the mean of SCAFFOLD's control variates is the server's."""
    federation.until(lambda: not any(pending(federation, node, run) for node in nodes))
    state, own = server or server_state(federation, run), [personal_state(federation, node, run) for node in nodes]
    for key in own[0]:
        assert stack([personal[key] for personal in own]).mean(0).allclose(state[f"control/{key}"], atol=1e-6)


def pending(federation: Federation, node: str, run: str) -> int:
    """Personal states of a run of which a node does not know whether they counted."""
    with sqlite3.connect(f"file:{federation.folder / node / 'vault' / 'vault.sqlite'}?mode=ro", uri=True) as vault:
        query = "select count(*) from personal where run = ? and phase = 'pending'"
        found = vault.execute(query, (run,)).fetchone()[0]
    vault.close()
    return int(found)


def committed_contribution(federation: Federation, node: str, run: str) -> str | None:
    """The digest of the contribution that a node's committed state belongs to; None without one, or while others are pending."""
    engine = connect(f"sqlite:///{federation.folder / node / 'vault' / 'vault.sqlite'}")
    with engine.connect() as connection:
        query = sa.text("select phase, contribution from personal where run = :run order by phase")
        rows = connection.execute(query, {"run": run}).all()
    engine.dispose()
    return rows[0].contribution if [row.phase for row in rows] == ["committed"] else None


def counted(federation: Federation, run: str) -> list[sa.Row[tuple[str, int, int, str]]]:
    """(node, round that asked, round in whose sum it is, digest) of each contribution that counted, by the latter."""
    engine = connect(f"sqlite:///{federation.folder / 'coordinator' / 'coordinator.sqlite'}")
    of = contributions.c
    query = sa.select(of.node, of.round, of.summed, of.sha256).where(of.run == run, of.counted).order_by(of.summed, of.node)
    with engine.connect() as connection:
        found = list(connection.execute(query))
    engine.dispose()
    return found
