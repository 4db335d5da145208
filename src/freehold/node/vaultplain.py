"""Vaults of before states were encrypted, which are encrypted when they are first opened.

Until the one transaction that writes the index and drops the old table, the old states lie there untouched; so a node may be
killed at any moment. What the file system keeps of deleted blocks is out of reach here.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from freehold import durable
from freehold.errors import VaultError
from freehold.node.encryption import SALT_BYTES, encrypted
from freehold.node.vaultindex import Row
from freehold.wire.local import Mapped

_COLUMNS = "run, round, phase, contribution, sha256, length, body"


class _Plain(NamedTuple):
    run: str
    round: int
    phase: str
    contribution: str
    sha256: str
    length: int
    body: bytes | None


class PlainVault(NamedTuple):
    """The old table."""

    rows: list[_Plain]

    @staticmethod
    def find(db: sqlite3.Connection) -> PlainVault | None:
        """What is in it; None if there is none, or nothing in it."""
        if db.execute("select 1 from sqlite_master where type = 'table' and name = 'personal'").fetchone() is None:
            return None
        rows = [_Plain(*row) for row in db.execute(f"select {_COLUMNS} from personal")]
        return PlainVault(rows) if rows else None

    @staticmethod
    def drop(db: sqlite3.Connection) -> None:
        """Delete it, in the transaction that is open; its files then belong to no row."""
        db.execute("drop table personal")

    def encrypted(self, key: bytes, *, now: float, folder: Path) -> tuple[list[Row], list[tuple[str, bytes]]]:
        """The rows of the index, and the bodies that are to lie in the database; the others are written here."""
        rows, bodies = [], []
        for old in self.rows:
            row = Row(
                run=old.run,
                round=old.round,
                contribution=old.contribution,
                pending=old.phase == "pending",
                salt=os.urandom(SALT_BYTES).hex(),
                length=old.length,
                inline=old.body is not None,
                used=now,
            )
            salt = bytes.fromhex(row.salt)
            if old.body is not None:
                _check(old, old.body, folder)
                bodies.append((row.salt, b"".join(encrypted(key, salt, row.label, old.body))))
            else:
                fd = os.open(_file(folder, old), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    with Mapped(fd) as view:
                        _check(old, view, folder)
                        durable.write(
                            folder / f"{row.salt[:32]}.state", encrypted(key, salt, row.label, view), point="node.migrate-state"
                        )
                finally:
                    os.close(fd)
            rows.append(row)
        return rows, bodies


def _file(folder: Path, old: _Plain) -> Path:
    return folder / f"{old.run}.{old.round}.{old.contribution[:16]}.safetensors"


def _check(old: _Plain, body: bytes | memoryview, folder: Path) -> None:
    if len(body) != old.length or hashlib.sha256(body).hexdigest() != old.sha256:
        raise VaultError(
            f"The personal state of run {old.run} in {folder} is damaged, so the vault cannot be encrypted.",
            hint="Restore the vault from a backup, or leave with --erase and join anew.",
        )
