"""The vault's key: where it comes from, and what is no key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.errors import VaultKeyError, VaultLocked
from tests.unit.node.vaults import SMALL, Node


def a_credential(folder: Path, body: bytes, mode: int = 0o400) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "vault.key"
    path.unlink(missing_ok=True)
    path.write_bytes(body)
    path.chmod(mode)
    return folder


def trained(state: Path, credentials: Path | None = None) -> Node:
    node = Node(state, credentials=credentials)
    node.trained(0, SMALL)
    node.end()
    return node


@pytest.mark.parametrize("mode", [0o400, 0o440], ids=["owned", "by an access control list"])
def test_a_credential_of_systemds_is_the_key_and_none_is_made(tmp_path: Path, mode: int) -> None:
    credentials = a_credential(tmp_path / "credentials", os.urandom(32), mode)
    node = trained(tmp_path / "state", credentials)
    assert not (tmp_path / "state" / "vault.key").exists()
    assert Node(tmp_path / "state", credentials=credentials).committed() == SMALL
    assert node.vault.has_credential


def test_a_file_becomes_a_credential(tmp_path: Path) -> None:
    trained(tmp_path)
    key = tmp_path / "vault.key"
    credentials = a_credential(tmp_path / "credentials", key.read_bytes())
    key.unlink()
    assert Node(tmp_path, credentials=credentials).committed() == SMALL


def test_a_credential_comes_before_a_file_and_another_key_is_refused_and_replaces_nothing(tmp_path: Path) -> None:
    trained(tmp_path)
    credentials = a_credential(tmp_path / "credentials", os.urandom(32))
    node = Node(tmp_path, credentials=credentials)
    for _ in range(2):
        with pytest.raises(VaultLocked):
            node.committed()
        with pytest.raises(VaultLocked):
            node.put(1, "c", SMALL)
    a_credential(credentials, (tmp_path / "vault.key").read_bytes())
    assert node.committed() == SMALL, "as soon as it is the right one"


def test_a_key_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "vault.key").unlink()
    node = Node(tmp_path)
    for act in (node.pending, node.committed, lambda: node.put(1, "c", SMALL)):
        with pytest.raises(VaultKeyError, match="gone"):
            act()
    assert not (tmp_path / "vault.key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused_before_anything_is_written(tmp_path: Path, mode: int) -> None:
    (tmp_path / "vault.key").write_bytes(os.urandom(32))
    (tmp_path / "vault.key").chmod(mode)
    with pytest.raises(VaultKeyError, match="read by others"):
        Node(tmp_path).pending()


@pytest.mark.parametrize("mode", [0o404, 0o460])
def test_a_credential_that_all_may_read_or_a_group_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(VaultKeyError, match="read by others"):
        Node(tmp_path, credentials=a_credential(tmp_path / "credentials", os.urandom(32), mode)).pending()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(VaultKeyError, match=f"{length} bytes"):
        Node(tmp_path, credentials=a_credential(tmp_path / "credentials", bytes(length))).pending()


def test_erasing_needs_no_key_and_leaves_a_credential(tmp_path: Path) -> None:
    credentials = a_credential(tmp_path / "credentials", os.urandom(32))
    trained(tmp_path, credentials)
    for key in (None, a_credential(tmp_path / "others", os.urandom(32))):
        node = Node(tmp_path, credentials=key)
        assert node.vault.erase() == (1 if key is None else 0)
        node.send()
        assert not node.files() and (credentials / "vault.key").exists()
        node.end()
