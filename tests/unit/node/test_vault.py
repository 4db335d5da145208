"""The vault: what counted is committed, nothing else, whatever was killed when; states in rows and in files alike."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.errors import VaultError
from freehold.node import vault as vault_module
from freehold.node.vault import Vault
from freehold.wire.local import close, read, sealed
from freehold.wire.messages import Pending, Settled

RUN = "0123456789abcdef-0"
SMALL, LARGE = b"small", bytes(range(256)) * (vault_module.INLINE_BYTES // 256 + 1)


def digest(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()


def put(vault: Vault, round: int, contribution: str, state: bytes) -> None:
    fd = sealed(state, "state")
    try:
        vault.put_pending(RUN, round, digest(contribution), fd)
    finally:
        close([fd])


def committed(vault: Vault) -> bytes | None:
    fd = vault.committed(RUN)
    if fd is None:
        return None
    try:
        return read(fd)
    finally:
        close([fd])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("vault.sqlite"))


@pytest.mark.parametrize("state", [SMALL, LARGE], ids=["row", "file"])
def test_the_state_of_the_contribution_that_counted_is_committed_and_no_other(tmp_path: Path, state: bytes) -> None:
    vault = Vault(tmp_path)
    assert committed(vault) is None and not vault.pending()
    put(vault, 0, "first", b"another")
    put(vault, 0, "again", state)
    assert vault.pending() == [Pending(run=RUN, round=0)] and committed(vault) is None
    vault.settle(Settled(run=RUN, round=0, counted=digest("again")))
    assert committed(vault) == state and not vault.pending()
    put(vault, 1, "lost", b"not counted")
    vault.settle(Settled(run=RUN, round=1, counted=""))
    assert committed(Vault(tmp_path)) == state and not vault.pending()
    vault.settle(Settled(run=RUN, round=0, counted=digest("again")))  # told twice
    assert committed(vault) == state
    assert len(files(tmp_path)) == (state is LARGE), "files of what is gone are gone"
    assert vault.erase() == 1 and committed(vault) is None and not files(tmp_path)


def test_a_damaged_state_is_noticed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    put(vault, 0, "c", LARGE)
    vault.settle(Settled(run=RUN, round=0, counted=digest("c")))
    (path,) = files(tmp_path)
    body = bytearray(path.read_bytes())
    body[1000] ^= 1
    path.write_bytes(body)
    with pytest.raises(VaultError, match="damaged"):
        vault.committed(RUN)


def test_what_others_may_read_is_nothing(tmp_path: Path) -> None:
    put(Vault(tmp_path / "vault"), 0, "c", LARGE)
    assert (tmp_path / "vault").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in files(tmp_path / "vault"))


DYING = """
import sys
from pathlib import Path
from tests.unit.node.test_vault import LARGE, RUN, Settled, Vault, digest, put
vault = Vault(Path(sys.argv[1]))
put(vault, 1, "next", LARGE)
vault.settle(Settled(run=RUN, round=1, counted=digest("next")))
"""


BEFORE = ["node.personal.writing", "node.personal.written", "node.personal.named", "node.pending.committing"]
BETWEEN = ["node.pending.committed", "node.settle.committing"]
POINTS = [*BEFORE, *BETWEEN, "node.settle.committed"]


@pytest.mark.parametrize("point", BEFORE)
def test_killed_before_a_state_is_pending_there_is_none_and_no_file_of_it(tmp_path: Path, point: str) -> None:
    assert dies(tmp_path, point).pending() == []
    assert len(files(tmp_path)) == 1, "that of the committed state"


@pytest.mark.parametrize("point", BETWEEN)
def test_killed_before_a_round_is_settled_its_state_is_pending(tmp_path: Path, point: str) -> None:
    vault = dies(tmp_path, point)
    assert vault.pending() == [Pending(run=RUN, round=1)]
    vault.settle(Settled(run=RUN, round=1, counted=digest("next")))
    assert len(files(tmp_path)) == 1


def dies(folder: Path, point: str) -> Vault:
    """The vault, opened again after a process was killed in the middle of a round; the round before is committed."""
    vault = Vault(folder)
    put(vault, 0, "before", LARGE)
    vault.settle(Settled(run=RUN, round=0, counted=digest("before")))
    environment = {**os.environ, "FREEHOLD_FAILPOINTS": f"{point}=kill", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", DYING, str(folder)], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    again = Vault(folder)
    assert committed(again) is not None
    return again


def test_killed_after_a_round_is_settled_its_state_is_committed(tmp_path: Path) -> None:
    vault = dies(tmp_path, "node.settle.committed")
    assert vault.pending() == [] and len(files(tmp_path)) == 1
    vault.settle(Settled(run=RUN, round=1, counted=digest("next")))
    assert len(files(tmp_path)) == 1
