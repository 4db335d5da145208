"""The vault: what counted is committed, nothing else, whatever was killed when; states in rows and in files alike."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, NodeError, StateInUse, VaultError, VaultPutBack
from freehold.node import ledger as ledger_module
from freehold.wire.local import close, sealed
from tests.unit.node.vaults import LARGE, OTHER, RUN, SMALL, Node, digest, killed_at, plain_vault


@pytest.mark.parametrize("state", [SMALL, LARGE, b""], ids=["row", "file", "nothing"])
def test_the_state_of_the_contribution_that_counted_is_committed_and_no_other(tmp_path: Path, state: bytes) -> None:
    node = Node(tmp_path)
    assert node.committed() is None and not node.pending()
    node.put(0, "first", b"another")
    node.put(0, "again", state)
    assert node.pending() == [0] and node.committed() is None
    node.settle(0, "again")
    assert node.committed() == state and not node.pending()
    node.put(1, "lost", b"not counted")
    node.settle(1, "")
    assert node.anew().committed() == state and not node.pending()
    node.settle(0, "again")  # told twice
    assert node.committed() == state
    assert len(node.files()) == (state is LARGE), "files of what is gone are gone"


def test_a_run_of_another_plan_that_has_the_same_number_does_not_get_the_state(tmp_path: Path) -> None:
    """Run numbers have 64 bits of the plan's digest: two plans that share them can be made in 2^32 steps."""
    node = Node(tmp_path)
    fd = sealed(SMALL, "state")
    node.vault.put_pending(RUN, 0, digest("c"), fd, dataset="heart", plan="sha256:" + "a" * 64)
    close([fd])
    node.send()
    node.settle(0, "c")
    found = node.vault.committed(RUN, "sha256:" + "a" * 64)
    assert found is not None
    close([found])
    with pytest.raises(NodeError, match="has the number of a run of"):
        node.anew().vault.committed(RUN, "sha256:" + "b" * 64)


def test_a_state_that_is_put_twice_is_there_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for body in (LARGE, LARGE[::-1]):
        node.put(0, "same", body)
    assert len(node.files()) == 1
    node.settle(0, "same")
    assert node.committed() == LARGE[::-1]


def test_what_others_may_read_is_nothing_and_what_lies_there_is_no_state(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(0, "c", LARGE)
    node.put(1, "d", b"a small state of somebody")
    assert node.folder.stat().st_mode & 0o077 == 0
    node.end()
    for path in (*node.folder.iterdir(), tmp_path / "vault.key"):
        assert path.stat().st_mode & 0o077 == 0
        body = path.read_bytes()
        assert LARGE[:64] not in body and b"somebody" not in body and RUN.encode() not in body


def test_two_guards_do_not_write_over_each_other(tmp_path: Path) -> None:
    """One whose agent died may still be there for a moment; the ledger's lock keeps the other waiting, and then it looks anew."""
    first, second = Node(tmp_path), Node(tmp_path)
    first.put(0, "c", SMALL)
    assert second.pending() == [0]
    first.settle(0, "c")
    first.door.close()
    assert second.committed() == SMALL
    second.trained(1, LARGE)
    second.door.close()
    first.put(2, "d", SMALL)
    assert first.committed() == LARGE and first.pending() == [2]


def test_a_guard_that_only_looks_takes_nothing_from_one_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a state lies there before the index names it."""
    monkeypatch.setattr(ledger_module, "LOCK_S", 0.0)
    node = Node(tmp_path)
    node.trained(0, LARGE)
    node.door.anchor()
    early = node.folder / f"{'0' * 32}.state"
    early.write_bytes(b"on its way")
    other = Node(tmp_path)
    assert other.pending() == [] and early.exists()
    with pytest.raises(StateInUse):
        other.committed()
    assert early.exists()
    node.door.close()
    assert other.committed() == LARGE and not early.exists()


# What was changed behind the vault's back.


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a committed state in a file, and one in the database."""
    node = Node(tmp_path_factory.mktemp("kept"))
    node.trained(0, LARGE)
    node.trained(0, SMALL, OTHER)
    node.end()
    return node.folder.parent


def changed(kept: Path, folder: Path, change: str, at: float, bit: int) -> Node:
    """A copy in which one bit was changed, or a file cut, there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    node = Node(folder)
    (large,) = node.files()
    path = large if change.endswith("file") else node.folder / "vault.sqlite"
    body = bytearray(path.read_bytes())
    place = int(at * (len(body) - 1))
    if change.startswith("cut"):
        del body[place:]
    elif change.startswith("longer"):
        body += bytes(place + 1)
    else:
        body[place] ^= 1 << bit
    path.write_bytes(body)
    return node


CHANGES = st.sampled_from(["bit of a file", "cut of a file", "longer file", "bit of the database", "cut of the database"])


@given(change=CHANGES, at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_or_a_cut_anywhere_is_refused_and_never_another_state(
    kept: Path, tmp_path_factory: pytest.TempPathFactory, change: str, at: float, bit: int
) -> None:
    node = changed(kept, tmp_path_factory.getbasetemp() / "changed", change, at, bit)
    try:
        found = [node.committed(run) for run in (RUN, OTHER)]
    except FreeholdError:
        return
    finally:
        node.end()
    assert found == [LARGE, SMALL], "a place of the database that means nothing"
    assert not change.endswith("file")


def test_each_byte_of_what_is_encrypted_in_the_database_counts(kept: Path, tmp_path: Path) -> None:
    for table, column in (("vault", "body"), ("bodies", "body"), ("vault", "salt")):
        for where in ("first", "last"):
            shutil.rmtree(tmp_path / "one", ignore_errors=True)
            shutil.copytree(kept, tmp_path / "one")
            node = Node(tmp_path / "one")
            db = sqlite3.connect(node.folder / "vault.sqlite")
            body = bytearray(db.execute(f"select {column} from {table}").fetchone()[0])
            body[0 if where == "first" else -1] ^= 1
            db.execute(f"update {table} set {column} = ?", (bytes(body),))
            db.commit()
            db.close()
            with pytest.raises(VaultError, match=r"damaged"):
                node.committed(OTHER)
            node.end()


def test_files_of_two_runs_that_change_places_are_refused(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trained(0, LARGE)
    node.trained(0, LARGE, OTHER)
    one, other = node.files()
    body = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(body)
    for run in (RUN, OTHER):
        with pytest.raises(VaultError, match="damaged"):
            node.committed(run)


def test_a_state_whose_file_is_gone_is_not_taken_for_none(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trained(0, LARGE)
    node.files()[0].unlink()
    with pytest.raises(VaultError):
        node.anew().committed()


# Put back.


@given(steps=st.lists(st.sampled_from(["put", "send", "settle", "forget", "start"]), max_size=10), at=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_a_vault_of_before_the_last_contribution_is_refused(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], at: int
) -> None:
    state = tmp_path_factory.getbasetemp() / "steps"
    shutil.rmtree(state, ignore_errors=True)
    node, sent, changed, copy = Node(state), False, False, state / "copy"
    node.trained(0, SMALL)
    for number, step in enumerate(steps):
        if number == min(at, len(steps) - 1):
            shutil.copytree(node.folder, copy, ignore=shutil.ignore_patterns("*.part"))
            sent = changed = False
        if step == "put":
            node.put(number + 1, "c", b"%d" % number)
            changed = True
        elif step == "send":
            node.send()
            sent |= changed
        elif step == "settle" and node.pending():
            node.settle(node.pending()[0], "c")
            changed = True
        elif step == "forget" and (node.committed() or node.pending()):
            node.vault.forget(RUN[:16])
            changed = True
        elif step == "start":
            node.end()
            node = node.anew()
    node.end()
    if copy.exists():
        shutil.rmtree(node.folder)
        shutil.copytree(copy, node.folder)
    again = Node(state)
    try:
        if sent:
            with pytest.raises(VaultPutBack):
                again.committed()
            with pytest.raises(VaultPutBack):
                again.settle(1, "c") if again.pending() else again.put(1, "c", SMALL)
        else:
            again.committed()  # what was undone had not left: the coordinator says again what counted
    finally:
        again.end()


def test_a_vault_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trained(0, SMALL)
    node.end()
    shutil.rmtree(node.folder)
    for _ in range(2):
        node = node.anew()
        with pytest.raises(VaultPutBack, match="gone"):
            node.put(1, "c", SMALL)
        with pytest.raises(VaultPutBack, match="gone"):
            node.send()
        node.end()


def test_what_was_erased_does_not_come_back(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trained(0, SMALL)
    node.end()
    shutil.copytree(node.folder, tmp_path / "copy")
    shutil.copy(tmp_path / "vault.key", tmp_path / "key")
    node = node.anew()
    assert node.vault.erase() == 1
    node.send()
    assert node.committed() is None and not node.pending()
    node.end()
    shutil.rmtree(node.folder)
    shutil.copytree(tmp_path / "copy", node.folder)
    shutil.copy(tmp_path / "key", tmp_path / "vault.key")
    with pytest.raises(VaultPutBack):
        node.anew().committed()


# Killed.

BEFORE = ["node.personal.writing", "node.personal.written", "node.personal.named", "node.pending.committing"]
BETWEEN = ["node.pending.committed", "node.settle.committing"]
KEY = ["node.vault-key.writing", "node.vault-key.written", "node.vault-key.named"]
FORGET = ["node.forget.committing", "node.forget.committed"]
ERASE = [f"{point}.{step}" for point in ("node.vault-key-erased", "node.erase") for step in ("removing", "removed")]
MIGRATE = [f"node.migrate-state.{step}" for step in ("writing", "written", "named")]
MIGRATE += ["node.migrate.committing", "node.migrate.committed"]
POINTS = [*BEFORE, *BETWEEN, *KEY, *FORGET, *ERASE, *MIGRATE, "node.settle.committed"]

ROUND = "node.put(1, 'next', LARGE); node.settle(1, 'next')"


def dies(folder: Path, point: str) -> Node:
    """The vault, opened again after a process was killed in the middle of a round; the round before is committed."""
    node = Node(folder)
    node.trained(0, LARGE)
    node.end()
    killed_at(point, folder, ROUND)
    again = node.anew()
    assert again.committed() is not None
    return again


@pytest.mark.parametrize("point", BEFORE)
def test_killed_before_a_state_is_pending_there_is_none_and_no_file_of_it(tmp_path: Path, point: str) -> None:
    node = dies(tmp_path, point)
    assert node.pending() == []
    assert len(node.files()) == 1, "that of the committed state"


@pytest.mark.parametrize("point", BETWEEN)
def test_killed_before_a_round_is_settled_its_state_is_pending(tmp_path: Path, point: str) -> None:
    node = dies(tmp_path, point)
    assert node.pending() == [1]
    node.settle(1, "next")
    assert len(node.files()) == 1


def test_killed_after_a_round_is_settled_its_state_is_committed(tmp_path: Path) -> None:
    node = dies(tmp_path, "node.settle.committed")
    assert node.pending() == [] and len(node.files()) == 1
    node.settle(1, "next")
    assert len(node.files()) == 1


@pytest.mark.parametrize("point", KEY)
def test_killed_while_the_key_is_made_there_is_one_key(tmp_path: Path, point: str) -> None:
    killed_at(point, tmp_path, "node.trained(0, SMALL)")
    node = Node(tmp_path)
    node.trained(0, SMALL)
    assert node.anew().committed() == SMALL and len((tmp_path / "vault.key").read_bytes()) == 32


@pytest.mark.parametrize("point", FORGET)
def test_killed_while_a_study_is_forgotten_the_others_are_there(tmp_path: Path, point: str) -> None:
    node = Node(tmp_path)
    node.trained(0, LARGE)
    node.trained(0, SMALL, OTHER)
    node.end()
    killed_at(point, tmp_path, "node.vault.forget(RUN[:16])")
    node = node.anew()
    assert node.committed(OTHER) == SMALL
    assert node.committed() == (LARGE if point.endswith("committing") else None)
    assert len(node.files()) == point.endswith("committing")


@pytest.mark.parametrize("point", ERASE)
def test_killed_while_all_is_erased_it_is_erased_the_next_time(tmp_path: Path, point: str) -> None:
    node = Node(tmp_path)
    node.trained(0, LARGE)
    node.end()
    killed_at(point, tmp_path, "node.vault.erase(); node.send()")
    node = node.anew()
    if point != "node.vault-key-erased.removing":
        with pytest.raises(FreeholdError):
            node.committed()
    node.vault.erase()
    node.send()
    assert not node.files() and not (tmp_path / "vault.key").exists()
    node.trained(0, SMALL)
    assert node.anew().committed() == SMALL


# A vault of a version that did not encrypt.


def is_migrated(state: Path) -> None:
    node = Node(state)
    assert node.committed() == LARGE and node.committed(OTHER) == SMALL and node.pending() == [4]
    assert len(node.files()) == 1
    node.settle(4, f"{RUN} 4")
    node.send()
    assert node.committed() == SMALL
    node.end()
    for path in node.folder.iterdir():
        body = path.read_bytes()
        assert LARGE[:64] not in body and SMALL not in body and RUN.encode() not in body


def test_a_plain_vault_is_encrypted_when_it_is_opened(tmp_path: Path) -> None:
    plain_vault(tmp_path / "vault")
    is_migrated(tmp_path)


@pytest.mark.parametrize("point", MIGRATE)
def test_killed_while_it_is_encrypted_it_is_encrypted_the_next_time(tmp_path: Path, point: str) -> None:
    plain_vault(tmp_path / "vault")
    killed_at(point, tmp_path, "node.pending()")
    is_migrated(tmp_path)


def test_a_plain_vault_that_is_damaged_is_left_as_it_is(tmp_path: Path) -> None:
    plain_vault(tmp_path / "vault")
    (path,) = (tmp_path / "vault").glob("*.safetensors")
    path.write_bytes(LARGE[:-1])
    node = Node(tmp_path)
    with pytest.raises(VaultError, match="damaged"):
        node.pending()
    node.end()
    path.write_bytes(LARGE)
    is_migrated(tmp_path)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "instead"])
def test_a_plain_vault_is_not_believed_where_there_was_an_encrypted_one(tmp_path: Path, beside: bool) -> None:
    node = Node(tmp_path)
    node.trained(0, SMALL)
    node.end()
    plain_vault(tmp_path / "plain")
    if beside:
        db = sqlite3.connect(node.folder / "vault.sqlite")
        db.execute("attach ? as plain", (str(tmp_path / "plain" / "vault.sqlite"),))
        db.execute("create table personal as select * from plain.personal")
        db.commit()
        db.close()
    else:
        shutil.rmtree(node.folder)
        shutil.move(tmp_path / "plain", node.folder)
    with pytest.raises(VaultError, match="not encrypted"):
        node.anew().committed()
