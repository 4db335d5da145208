"""What lies in a vault: an index that only the vault's key can read or write, and one encrypted body for each state.

The index numbers its versions and names the budget that was current when it was written; the budget names the vault (see
`freehold.node.vault`).
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
from dataclasses import dataclass

import msgspec

from freehold.errors import VaultError, VaultLocked
from freehold.node.encryption import SALT_BYTES, InvalidTag, decrypted, encrypted, key_id

TABLES = """
create table if not exists vault (
  one integer primary key check (one = 1), key_id text not null, salt blob not null, length integer not null, body blob not null
) strict;
create table if not exists bodies (id text primary key, body blob not null) strict, without rowid;
"""

_LABEL = b"index"


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One state."""

    run: str
    round: int
    contribution: str
    """Digest of the contribution that it belongs to."""
    pending: bool
    salt: str
    """Of its body, in hexadecimal; also what the body is called."""
    length: int
    inline: bool
    """Whether the body lies in the database."""
    dataset: str = ""
    """Name of the data that it was trained on; "" where that is not known."""
    used: float = 0.0
    """Unix time of the last change."""
    plan: str = ""
    """The whole digest of the study's plan, of which `run` has 64 bits; "" where that is not known."""

    @property
    def key(self) -> tuple[str, int, str]:
        """What the state belongs to."""
        return self.run, self.round, self.contribution

    @property
    def study(self) -> str:
        """The first 16 digits of the digest of the study's plan."""
        return self.run.rpartition("-")[0]

    @property
    def label(self) -> bytes:
        """What is bound to each piece of the body. Whether the state counts is in the index alone."""
        return f"state {self.run} {self.round} {self.contribution}".encode()


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All states of a node."""

    version: int = 0
    budget: str | None = None
    """Digest of the budget that was current when this was written; None before the first."""
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Written:
    """An index and, in hexadecimal, what it is called."""

    index: Index
    digest: str


def key_of(db: sqlite3.Connection) -> str | None:
    """What tells the key that this vault was written with; None where nothing is written yet."""
    found = db.execute("select key_id from vault").fetchone()
    return None if found is None else str(found[0])


def salt_of(db: sqlite3.Connection) -> bytes | None:
    """Another one for each index that was written; None before the first."""
    found = db.execute("select salt from vault").fetchone()
    return None if found is None else bytes(found[0])


def read(db: sqlite3.Connection, key: bytes) -> Written:
    """The index; raises VaultLocked or VaultError, for one that was changed."""
    known, salt, length, body = db.execute("select key_id, salt, length, body from vault").fetchone()
    if known != key_id(key):
        raise VaultLocked(
            "The vault was written with another key.",
            hint="Give the node that key again. Without it the states are lost: leave with --erase, and join anew.",
        )
    try:
        text = b"".join(decrypted(key, salt, _LABEL, length, io.BytesIO(body)))
        return Written(msgspec.json.decode(text, type=Index), hashlib.sha256(body).hexdigest())
    except (InvalidTag, msgspec.MsgspecError, OverflowError):
        raise VaultError(
            "The index of the vault was changed, or is damaged.",
            hint="Restore the whole state folder from its newest backup, or leave with --erase and join anew.",
        ) from None


def write(db: sqlite3.Connection, key: bytes, index: Index) -> Written:
    """Put the index where the last one was, in the transaction that is open."""
    salt, text = os.urandom(SALT_BYTES), msgspec.json.encode(index)
    body = b"".join(encrypted(key, salt, _LABEL, text))
    db.execute("insert or replace into vault values (1, ?, ?, ?, ?)", (key_id(key), salt, len(text), body))
    return Written(index, hashlib.sha256(body).hexdigest())


def settled(row: Row, now: float) -> Row:
    """A pending state that counted."""
    return msgspec.structs.replace(row, pending=False, used=now)
