"""States as they lie on the disk of a coordinator and of a node."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from safetensors.torch import load
from torch import Tensor, stack

from freehold.coordinator.store import connect
from freehold.coordinator.study_tables import blobs, contributions, runs
from freehold.node import vaultindex, vaultkey
from freehold.node.encryption import decrypted
from freehold.node.vaultindex import Row, salt_of
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
    with a_vault(federation, node) as (key, rows, db):
        (row,) = (row for row in rows if row.run == run and not row.pending)
        (body,) = db.execute("select body from bodies where id = ?", (row.salt,)).fetchone()
    return load(b"".join(decrypted(key, bytes.fromhex(row.salt), row.label, row.length, io.BytesIO(body))))


@contextmanager
def a_vault(federation: Federation, node: str) -> Iterator[tuple[bytes, Sequence[Row], sqlite3.Connection]]:
    """The key of a node's vault, what is in it now, and its database."""
    state = federation.folder / node
    with closing(sqlite3.connect(f"file:{state / 'vault' / 'vault.sqlite'}?mode=ro", uri=True)) as db:
        db.execute("begin")
        if salt_of(db) is None:
            yield b"", (), db
            return
        key = vaultkey.find(state, None)
        assert key is not None
        yield key, vaultindex.read(db, key).index.rows, db


def in_step(federation: Federation, run: str, nodes: Sequence[str], server: dict[str, Tensor] | None = None) -> None:
    """Nothing comes to be pending in any vault, and the mean of SCAFFOLD's control variates is the server's."""
    federation.until(lambda: not any(pending(federation, node, run) for node in nodes))
    state, own = server or server_state(federation, run), [personal_state(federation, node, run) for node in nodes]
    for key in own[0]:
        assert stack([personal[key] for personal in own]).mean(0).allclose(state[f"control/{key}"], atol=1e-6)


def pending(federation: Federation, node: str, run: str) -> int:
    """Personal states of a run of which a node does not know whether they counted."""
    with a_vault(federation, node) as (_, rows, _db):
        return len([row for row in rows if row.run == run and row.pending])


def committed_contribution(federation: Federation, node: str, run: str) -> str | None:
    """The digest of the contribution that a node's committed state belongs to; None without one, or while others are pending."""
    with a_vault(federation, node) as (_, rows, _db):
        mine = [row for row in rows if row.run == run]
    return mine[0].contribution if [row.pending for row in mine] == [False] else None


def counted(federation: Federation, run: str) -> list[sa.Row[tuple[str, int, int, str]]]:
    """(node, round that asked, round in whose sum it is, digest) of each contribution that counted, by the latter."""
    engine = connect(f"sqlite:///{federation.folder / 'coordinator' / 'coordinator.sqlite'}")
    of = contributions.c
    query = sa.select(of.node, of.round, of.summed, of.sha256).where(of.run == run, of.counted).order_by(of.summed, of.node)
    with engine.connect() as connection:
        found = list(connection.execute(query))
    engine.dispose()
    return found
