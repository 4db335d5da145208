"""The vault: personal states on disk, in two phases. A state is pending until the coordinator says that its round counted.

One SQLite file per node; larger states lie beside it, named by run, round and digest. The guard alone opens it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold import durable
from freehold.errors import VaultError
from freehold.wire.local import Mapped, sealed
from freehold.wire.messages import Pending, Settled

INLINE_BYTES = 256 * 1024
"""States up to this size lie in the database: one write to the disk instead of three."""

_TABLES = """
create table if not exists personal (
  run text not null, round integer not null, phase text not null check (phase in ('committed', 'pending')),
  contribution text not null, sha256 text not null, length integer not null, body blob,
  primary key (run, phase, round, contribution)
) strict, without rowid;
"""


class Vault:
    """Personal states of one node; every method that changes something returns once it is on the disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        with _explained(folder):
            path = folder / "vault.sqlite"
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_TABLES)
            self._sweep()

    def _sweep(self) -> None:
        """Remove what a crash left between a file and its row."""
        rows = self._db.execute("select run, round, contribution from personal where body is null").fetchall()
        named = {self._file(*row) for row in rows}
        for path in [*self._folder.glob("*.safetensors"), *self._folder.glob(".*.part")]:
            if path not in named:
                path.unlink()

    def committed(self, run: str) -> int | None:
        """Sealed memory with the committed state of a run, which the caller closes; None before the first."""
        with _explained(self._folder):
            row = self._db.execute(
                "select round, contribution, sha256, length, body from personal where run = ? and phase = 'committed'", (run,)
            ).fetchone()
            if row is None:
                return None
            round_, contribution, sha256, length, body = row
            if body is None:
                body = self._file(run, round_, contribution).read_bytes()
        if len(body) != length or hashlib.sha256(body).hexdigest() != sha256:
            raise VaultError(
                f"The personal state of run {run} in {self._folder} is damaged.",
                hint="Restore the vault from a backup, or leave the federation and join anew.",
            )
        return sealed(body, "personal")

    def put_pending(self, run: str, round: int, contribution: str, personal: int) -> None:
        """Keep the state behind `personal` (sealed memory) as that which belongs to the contribution of this digest."""
        with Mapped(personal) as view, _explained(self._folder):
            body = bytes(view) if len(view) <= INLINE_BYTES else None
            if body is None:
                durable.write(
                    self._file(run, round, contribution),
                    (view[i : i + 2**20] for i in range(0, len(view), 2**20)),
                    point="node.personal",
                )
            row = (run, round, contribution, hashlib.sha256(view).hexdigest(), len(view), body)
            self._db.execute("begin immediate")
            with self._transaction("node.pending"):
                self._db.execute("insert or replace into personal values (?, ?, 'pending', ?, ?, ?, ?)", row)

    def pending(self) -> list[Pending]:
        """The rounds of which nothing is known yet."""
        with _explained(self._folder):
            rows = self._db.execute("select distinct run, round from personal where phase = 'pending' order by run, round")
            return [Pending(run=run, round=round_) for run, round_ in rows.fetchall()]

    def settle(self, settled: Settled) -> None:
        """Commit the pending state whose contribution counted, and drop what else is pending of that round."""
        run, round_ = settled.run, settled.round
        with _explained(self._folder):
            files = self._db.execute(
                "select round, contribution from personal where run = ? and body is null and (phase = 'committed' or round = ?)",
                (run, round_),
            ).fetchall()
            self._db.execute("begin immediate")
            with self._transaction("node.settle"):
                kept = self._db.execute(
                    "select 1 from personal where run = ? and round = ? and phase = 'pending' and contribution = ?",
                    (run, round_, settled.counted),
                ).fetchone()
                if kept:
                    self._db.execute("delete from personal where run = ? and phase = 'committed'", (run,))
                    self._db.execute(
                        "update personal set phase = 'committed' where run = ? and round = ? and contribution = ?",
                        (run, round_, settled.counted),
                    )
                self._db.execute("delete from personal where run = ? and round = ? and phase = 'pending'", (run, round_))
            still = set(self._db.execute("select round, contribution from personal where run = ?", (run,)).fetchall())
            for each in set(files) - still:
                self._file(run, *each).unlink(missing_ok=True)

    def erase(self) -> int:
        """Delete every state; returns how many there were."""
        with _explained(self._folder):
            count = int(self._db.execute("select count(*) from personal").fetchone()[0])
            self._db.execute("begin immediate")
            with self._transaction("node.erase"):
                self._db.execute("delete from personal")
            self._db.execute("vacuum")
            for path in self._folder.glob("*.safetensors"):
                path.unlink()
            return count

    @contextmanager
    def _transaction(self, point: str) -> Iterator[None]:
        try:
            yield
            durable.commit(lambda: self._db.execute("commit"), point)
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise

    def _file(self, run: str, round: int, contribution: str) -> Path:
        return self._folder / f"{run}.{round}.{contribution[:16]}.safetensors"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise VaultError(
            f"The vault {folder} cannot be used: {getattr(error, 'strerror', None) or error}.",
            hint="Make room on the disk and look at the folder's owner and mode; nothing was sent.",
        ) from error
