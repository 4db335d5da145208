"""The vault: personal states on disk, encrypted, in two phases. A state is pending until the coordinator says that it counted.

<state>/vault/vault.sqlite   the index and small states (see `freehold.node.vaultindex`)      <state>/vault/*.state   larger ones
The guard alone opens it.

Put back to an earlier copy, a vault would train on what the federation has gone past. So the index names the privacy budget that
was current when it was written, and the budget, which the ledger ties down, names the vault: one of the two must be the other's.
Since a contribution leaves only after both were written, each vault is refused that is older than the last contribution.
Not noticed: what was undone since then (the coordinator says again what counted), and the whole state folder put back at once,
of which only somebody else can know: a checkpoint of the ledger with the coordinator, or a counter in a TPM.
Who has the key and the state folder can write any vault. Deleted states may leave encrypted traces on a drive; without the key
they are noise.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from freehold import durable
from freehold.errors import FreeholdError, NodeError, StateInUse, VaultError, VaultKeyError, VaultPutBack
from freehold.node import vaultindex, vaultkey
from freehold.node.budget import Anchor
from freehold.node.encryption import SALT_BYTES, InvalidTag, decrypted, encrypted
from freehold.node.tpm import Tpm
from freehold.node.vaultindex import TABLES, Index, Row, Written
from freehold.node.vaultplain import PlainVault
from freehold.wire.local import Mapped, Memory, close
from freehold.wire.messages import Pending, Settled

INLINE_BYTES = 256 * 1024
"""States up to this size lie in the database: one write to the disk instead of three."""

EMPTY = "empty"
"""What a vault without states is called; one that is not there is such a one too."""

FILE = "vault.sqlite"

_NOTHING = Written(Index(), EMPTY)


class Vault:
    """Personal states of one node; every method that changes something returns once it is on the disk.

    It is opened when it is first needed. Beside VaultError, methods raise VaultKeyError, VaultLocked or VaultPutBack, and what
    reading the budget raises; nothing is made anew then.
    """

    def __init__(
        self,
        state: Path,
        anchor: Callable[[], Anchor],
        *,
        credentials: Path | None = None,
        tpm: Tpm | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`state`: the node's state folder. `credentials`: the folder of systemd's credentials. `tpm`: where it has the key."""
        self._state, self._folder, self._anchor = state, state / "vault", anchor
        self._credentials, self._tpm, self._clock = credentials, tpm, clock
        self._db: sqlite3.Connection | None = None
        self._key: bytes | None = None
        self._found: Written | None = None
        self._salt: bytes | None = None
        """Of the index in `_found`."""
        self._sure = False
        """Whether `_found` is the newest."""

    def committed(self, run: str, plan: str = "") -> int | None:
        """Sealed memory with the committed state of a run of this plan, which the caller closes; None before the first.

        `plan`: its digest. Raises NodeError for the state of another one: two plans that name the same runs can be made.
        """
        row = next((row for row in self._newest().rows if row.run == run and not row.pending), None)
        if row is None:
            return None
        if row.plan not in ("", plan):
            raise NodeError(
                f"Run {run} of the plan {plan} has the number of a run of {row.plan}.",
                hint="Somebody made the two so, to read the personal state of the other one. It was not given.",
            )
        memory = Memory("personal")
        try:
            with _explained(self._folder):
                for piece in self._body(row):
                    memory.write(piece)
        except InvalidTag:
            close([memory.fd])
            raise VaultError(
                f"The personal state of run {run} in {self._folder} is damaged.",
                hint="Restore the vault from a backup, or leave the federation and join anew.",
            ) from None
        except BaseException:
            close([memory.fd])
            raise
        return memory.seal()

    def _body(self, row: Row) -> Iterator[bytes]:
        key, salt = self._own_key(), bytes.fromhex(row.salt)
        if not row.inline:
            with self._file(row).open("rb", buffering=0) as file:
                yield from decrypted(key, salt, row.label, row.length, file)
            return
        found = self._database().execute("select body from bodies where id = ?", (row.salt,)).fetchone()
        if found is None:
            raise InvalidTag
        yield from decrypted(key, salt, row.label, row.length, BytesIO(found[0]))

    def put_pending(self, run: str, round: int, contribution: str, personal: int, *, dataset: str = "", plan: str = "") -> None:
        """Keep the state behind `personal` (sealed memory) as that which belongs to the contribution of this digest."""
        rows = self._newest().rows
        with Mapped(personal) as view, _explained(self._folder):
            row = Row(
                run=run,
                round=round,
                contribution=contribution,
                pending=True,
                salt=os.urandom(SALT_BYTES).hex(),
                length=len(view),
                inline=len(view) <= INLINE_BYTES,
                dataset=dataset,
                used=self._clock(),
                plan=plan,
            )
            pieces = encrypted(self._own_key(), bytes.fromhex(row.salt), row.label, view)
            bodies = [(row.salt, b"".join(pieces))] if row.inline else []
            if not row.inline:
                durable.write(self._file(row), pieces, point="node.personal")
            others = [each for each in rows if not (each.pending and each.key == row.key)]
            self._write([*others, row], "node.pending", bodies)

    def pending(self) -> list[Pending]:
        """The rounds of which nothing is known yet, as the vault says, the newest or not: who asks does nothing but ask on."""
        found = {(row.run, row.round) for row in self._index().rows if row.pending}
        return [Pending(run=run, round=round_) for run, round_ in sorted(found)]

    def settle(self, settled: Settled) -> None:
        """Commit the pending state whose contribution counted, and drop what else is pending of that round."""
        rows = self._newest().rows
        mine = [row for row in rows if row.pending and (row.run, row.round) == (settled.run, settled.round)]
        counted = [row for row in mine if row.contribution == settled.counted]
        if not mine:
            return
        kept = [row for row in rows if row not in mine and (row.pending or row.run != settled.run or not counted)]
        kept += [vaultindex.settled(row, self._clock()) for row in counted]
        with _explained(self._folder):
            self._write(kept, "node.settle")

    def due(self, keep_days: Mapping[str, float]) -> dict[str, int]:
        """Study -> how many states it has, of the studies that did nothing here for longer than their data's owner keeps them.

        `keep_days`: of the data sets that have a limit. By this machine's clock.
        """
        found: dict[str, list[Row]] = {}
        for row in self._newest().rows if keep_days else ():
            found.setdefault(row.study, []).append(row)
        now = self._clock()
        return {
            study: len(rows)
            for study, rows in found.items()
            if all(row.dataset in keep_days and row.used + keep_days[row.dataset] * 86400 < now for row in rows)
        }

    def forget(self, study: str) -> None:
        """Delete the states of a study."""
        rows = self._newest().rows
        with _explained(self._folder):
            self._write([row for row in rows if row.study != study], "node.forget")
            self._database().execute("pragma wal_checkpoint(truncate)")

    def erase(self) -> int:
        """Delete the key, then every state, whatever they are like; returns how many there were.

        Killed on its way, it leaves what nobody can read, and can be called again.
        """
        with _explained(self._folder):
            count = self._count()
            vaultkey.erase(self._state)
            self.close()
            for path in sorted(self._folder.iterdir()):
                durable.remove(path, point="node.erase")
        self._key, self._found, self._salt, self._sure = None, _NOTHING, None, True
        return count

    def _count(self) -> int:
        try:
            return len(self._index().rows)
        except FreeholdError:
            large = len([path for path in self._folder.glob("*.s*") if path.suffix in (".state", ".safetensors")])
            try:
                return large + int(self._database().execute("select count(*) from bodies").fetchone()[0])
            except (sqlite3.Error, UnicodeDecodeError):
                return large  # whatever that file is, it goes

    def name(self) -> str:
        """What the budget is to call the vault as it is on the disk."""
        rows = self._newest().rows
        assert self._found is not None
        return self._found.digest if rows else EMPTY

    @property
    def has_credential(self) -> bool:
        """Whether the key is one of systemd's credentials."""
        return self._credentials is not None and (self._credentials / vaultkey.NAME).exists()

    # The index. Another guard, whose agent is dead, may still write: so each use looks whether it is the one that was read.

    def _index(self) -> Index:
        with _explained(self._folder):
            if self._db is None and self._found == _NOTHING and not (self._folder / FILE).exists():
                return _NOTHING.index
            db = self._database()
            if self._found is None or self._salt != vaultindex.salt_of(db):
                self._load(db)
        assert self._found is not None
        return self._found.index

    def _newest(self) -> Index:
        """The index, where nothing says that it was put back; raises VaultPutBack."""
        found = self._index()
        if not self._sure:
            anchor = self._anchor()
            assert self._found is not None
            name = self._found.digest if found.rows else EMPTY
            there = self._salt is not None
            if name != anchor.vault and not (there and found.budget == anchor.budget) and (there or anchor.vault is not None):
                raise _put_back(self._folder, there)
            self._sure = True
            with _explained(self._folder):
                self._sweep()  # nobody else is writing: who reads the budget has the ledger's lock
        return found

    def _load(self, db: sqlite3.Connection) -> None:
        self._found, self._key, self._sure = None, None, False
        plain = PlainVault.find(db)
        known = vaultindex.key_of(db)
        if plain is not None and (known is not None or self._anchor().vault is not None):
            raise VaultError(
                f"The vault {self._folder} has states that are not encrypted, as this version never writes them.",
                hint="An older Freehold ran on it, or somebody put them there. Restore the state folder, or leave with --erase.",
            )
        if plain is not None:
            rows, bodies = plain.encrypted(self._own_key(), now=self._clock(), folder=self._folder)
            self._found, self._salt = _NOTHING, None
            self._write(rows, "node.migrate", bodies, drop_plain=True)
            db.execute("pragma wal_checkpoint(truncate)")
            self._sweep()
        elif known is None:
            vaultkey.find(self._state, self._credentials, self._tpm)  # whether it is fit
            self._found, self._salt = _NOTHING, None
        else:
            self._found = vaultindex.read(db, self._own_key(known))
            self._salt = vaultindex.salt_of(db)

    def _write(
        self, rows: Sequence[Row], point: str, bodies: Sequence[tuple[str, bytes]] = (), *, drop_plain: bool = False
    ) -> None:
        """Make these all the rows there are."""
        assert self._found is not None
        before, db, key = self._found.index, self._database(), self._own_key()
        gone = {row.salt: row for row in before.rows}.keys() - {row.salt for row in rows}
        index = Index(version=before.version + 1, budget=self._anchor().budget, rows=tuple(rows))
        try:
            db.execute("begin immediate")
            if vaultindex.salt_of(db) != self._salt:
                raise StateInUse(
                    f"Another guard has written to {self._folder}.", hint="It is asked again, and goes on from there."
                )
            written = vaultindex.write(db, key, index)
            db.executemany("insert into bodies values (?, ?)", bodies)
            db.executemany("delete from bodies where id = ?", [(salt,) for salt in gone])
            if drop_plain:
                PlainVault.drop(db)
            durable.commit(lambda: db.execute("commit"), point)
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            self._found = None  # what is on the disk now, only reading it can tell
            raise
        self._found, self._salt, self._sure = written, vaultindex.salt_of(db), True
        for row in before.rows:
            if row.salt in gone and not row.inline:
                self._file(row).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a crash left between a file and the index."""
        assert self._found is not None
        named = {self._file(row) for row in self._found.index.rows}
        for path in [*self._folder.glob("*.state"), *self._folder.glob("*.safetensors"), *self._folder.glob(".*.part")]:
            if path not in named:
                path.unlink()

    def _own_key(self, known: str | None = None) -> bytes:
        """The key; made if there is none and nothing was written with one."""
        if self._key is None:
            known = known or vaultindex.key_of(self._database())
            self._key = vaultkey.find(self._state, self._credentials, self._tpm, known=known)
        if self._key is None and known:
            file = self._state / (vaultkey.SEALED if self._tpm else vaultkey.NAME)
            raise VaultKeyError(
                f"The vault {self._folder} is there, but its key is gone.",
                hint=f"Restore {file} or the credential. Without it: leave with --erase, and join anew.",
            )
        if self._key is None:
            self._key = vaultkey.make(self._state, self._tpm)
        return self._key

    def _database(self) -> sqlite3.Connection:
        if self._db is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / FILE
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(path, isolation_level=None)
            for setting in ("journal_mode = wal", "synchronous = full", "secure_delete = on"):
                db.execute(f"pragma {setting}")
            db.executescript(TABLES)
            self._db = db
        return self._db

    def close(self) -> None:
        """Let go of the files; the next use opens them again."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def _file(self, row: Row) -> Path:
        return self._folder / f"{row.salt[:32]}.state"


def _put_back(folder: Path, there: bool) -> VaultPutBack:
    what = (
        "is not the newest: it, or the budget, was put back to an earlier state"
        if there
        else "is gone, but the budget knows of one"
    )
    return VaultPutBack(
        f"The vault {folder} {what}.",
        hint="Restore vault/, budget/ and ledger/ from the same, newest backup. Without one: leave with --erase, and join anew.",
    )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # the last: where SQLite quotes a damaged database
        raise VaultError(
            f"The vault {folder} cannot be used: {getattr(error, 'strerror', None) or _said(error)}.",
            hint="Make room on the disk and look at the folder's owner and mode; nothing was sent.",
        ) from error


def _said(error: Exception) -> str:
    return "it is damaged" if isinstance(error, UnicodeDecodeError) else str(error)
