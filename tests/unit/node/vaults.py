"""A vault as a guard has it: tied to a budget and a ledger."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from freehold.node import vault as vault_module
from freehold.node.door import Door
from freehold.node.tpm import Tpm
from freehold.node.vault import Vault
from freehold.wire.local import close, read, sealed
from freehold.wire.messages import Settled

RUN, OTHER = "0123456789abcdef-0", "fedcba9876543210-0"
SMALL, LARGE = b"small", bytes(range(256)) * (vault_module.INLINE_BYTES // 256 + 1)


def digest(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()


class Node:
    """What of a guard has to do with states."""

    def __init__(self, state: Path, *, credentials: Path | None = None, tpm: Tpm | None = None, now: float = 1e9) -> None:
        self.now, self.folder = now, state / "vault"
        self.door = Door(state, node="alice", peer="", vault=lambda: self.vault.name())
        self.vault = Vault(state, self.door.anchor, credentials=credentials, tpm=tpm, clock=lambda: self.now)

    def put(self, round: int, contribution: str, state: bytes, run: str = RUN) -> None:
        fd = sealed(state, "state")
        try:
            self.vault.put_pending(run, round, digest(contribution), fd, dataset="heart")
        finally:
            close([fd])

    def settle(self, round: int, counted: str, run: str = RUN) -> None:
        self.vault.settle(Settled(run=run, round=round, counted=digest(counted) if counted else ""))

    def send(self) -> None:
        """As much of a contribution that leaves as the vault knows of."""
        self.door.name_vault()

    def trained(self, round: int, state: bytes, run: str = RUN) -> None:
        """A whole round."""
        self.put(round, f"{run} {round}", state, run)
        self.send()
        self.settle(round, f"{run} {round}", run)

    def committed(self, run: str = RUN) -> bytes | None:
        fd = self.vault.committed(run)
        if fd is None:
            return None
        try:
            return read(fd)
        finally:
            close([fd])

    def pending(self) -> list[int]:
        return [each.round for each in self.vault.pending()]

    def anew(self) -> Node:
        """A guard that was started again."""
        self.door.close()
        return Node(self.folder.parent, now=self.now)

    def end(self) -> None:
        """As when the process ends, so that its files can be looked at."""
        self.door.close()
        self.vault.close()

    def files(self) -> list[Path]:
        """Beside the database."""
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith("vault.sqlite"))


def killed_at(point: str, state: Path, code: str) -> None:
    """Run some lines, with a `node` and what this module has, in a process that is killed at a failpoint."""
    lines = f"import sys; from pathlib import Path; from {__name__} import *; node = Node(Path(sys.argv[1])); {code}"
    environment = {**os.environ, "FREEHOLD_FAILPOINTS": f"{point}=kill", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", lines, str(state)], env=environment, check=False, timeout=60)
    assert done.returncode == -9, f"{point} was not reached"


PLAIN = """
create table personal (
  run text not null, round integer not null, phase text not null check (phase in ('committed', 'pending')),
  contribution text not null, sha256 text not null, length integer not null, body blob,
  primary key (run, phase, round, contribution)
) strict, without rowid;
"""


def plain_vault(folder: Path) -> None:
    """As 0.1 wrote them: RUN has a large state committed and a small one pending, OTHER a small one committed."""
    folder.mkdir(mode=0o700)
    db = sqlite3.connect(folder / "vault.sqlite")
    db.execute("pragma journal_mode = wal")
    db.executescript(PLAIN)
    for run, round, phase, body in ((RUN, 3, "committed", LARGE), (RUN, 4, "pending", SMALL), (OTHER, 0, "committed", SMALL)):
        contribution = digest(f"{run} {round}")
        inline = body if body is SMALL else None
        row = (run, round, phase, contribution, hashlib.sha256(body).hexdigest(), len(body), inline)
        db.execute("insert into personal values (?, ?, ?, ?, ?, ?, ?)", row)
        if inline is None:
            (folder / f"{run}.{round}.{contribution[:16]}.safetensors").write_bytes(body)
    db.commit()
    db.close()
