"""The vault's key with a TPM: in no file in clear, back after a restart, and lost with the TPM, never made anew."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.errors import UsageError, VaultKeyError, VaultLocked
from freehold.failpoints import VARIABLE
from freehold.node import vaultkey
from freehold.node.__main__ import options_of
from freehold.node.tpm import DEVICE, Tpm
from tests.tpm import SoftwareTpm, software_tpm
from tests.unit.node.vaults import SMALL, Node

POINTS = [f"node.vault-sealed.{step}" for step in ("writing", "written", "named")]
ERASED = [f"node.vault-sealed-erased.{step}" for step in ("removing", "removed")]


@pytest.fixture
def chip() -> Iterator[SoftwareTpm]:
    with tempfile.TemporaryDirectory(prefix="t") as folder, software_tpm(Path(folder) / "t") as found:
        yield found


def trained(state: Path, tpm: Tpm | None) -> Node:
    node = Node(state, tpm=tpm)
    node.trained(0, SMALL)
    node.end()
    return node


def secrets(state: Path) -> list[Path]:
    """Files of 32 bytes, as a key in clear would be, and those that hold the key."""
    return [path for path in state.rglob("*") if path.is_file() and path.stat().st_size == 32]


def test_the_key_lies_in_no_file_and_comes_back_after_a_restart(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, chip.tpm)
    assert not (tmp_path / "vault.key").exists() and secrets(tmp_path) == []
    key = vaultkey.find(tmp_path, None, chip.tpm)
    assert key is not None and len(key) == 32
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or (key not in path.read_bytes() and key.hex().encode() not in path.read_bytes())
    assert (tmp_path / "vault.tpm").stat().st_mode & 0o777 == 0o600
    chip.stop()
    chip.start()
    assert Node(tmp_path, tpm=chip.tpm).committed() == SMALL


def test_another_tpm_gives_no_key_and_none_is_made(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, chip.tpm)
    before = (tmp_path / "vault.tpm").read_bytes()
    with tempfile.TemporaryDirectory(prefix="t") as folder, software_tpm(Path(folder) / "t") as other:
        node = Node(tmp_path, tpm=other.tpm)
        for act in (node.pending, node.committed, lambda: node.put(1, "c", SMALL)):
            with pytest.raises(VaultKeyError, match="refuses") as caught:
                act()
            assert "--erase" in caught.value.hint
        node.end()
    assert (tmp_path / "vault.tpm").read_bytes() == before
    assert Node(tmp_path, tpm=chip.tpm).committed() == SMALL


def test_a_tpm_that_was_cleared_gives_no_key_and_none_is_made(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, chip.tpm)
    before = (tmp_path / "vault.tpm").read_bytes()
    chip.clear()
    with pytest.raises(VaultKeyError, match="refuses"):
        Node(tmp_path, tpm=chip.tpm).committed()
    assert (tmp_path / "vault.tpm").read_bytes() == before


def test_a_tpm_that_is_not_there_or_a_sealed_key_that_is_gone_is_refused(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, chip.tpm)
    sealed = tmp_path / "vault.tpm"
    with pytest.raises(VaultKeyError, match="refuses"):
        Node(tmp_path, tpm=Tpm("swtpm:path=/nowhere")).committed()
    with pytest.raises(VaultKeyError, match="not told to ask"):
        Node(tmp_path).committed()
    body = sealed.read_bytes()
    for damaged in (b"", b"{}", body.replace(b'"format":1', b'"format":2'), body[:-9] + b"zz" + body[-7:], os.urandom(32)):
        sealed.write_bytes(damaged)
        with pytest.raises(VaultKeyError, match="damaged"):
            Node(tmp_path, tpm=chip.tpm).committed()
    sealed.unlink()
    with pytest.raises(VaultKeyError, match="gone"):
        Node(tmp_path, tpm=chip.tpm).committed()
    assert not sealed.exists() and not (tmp_path / "vault.key").exists()
    sealed.write_bytes(body)
    assert Node(tmp_path, tpm=chip.tpm).committed() == SMALL


def test_without_the_programs_it_is_said_what_to_install(chip: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(VaultKeyError) as caught:
        chip.tpm.seal(b"x" * 32)
    assert "tpm2-tools" in caught.value.hint


def test_the_key_of_a_file_comes_to_be_sealed_and_the_file_goes(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, None)
    key = (tmp_path / "vault.key").read_bytes()
    node = Node(tmp_path, tpm=chip.tpm)
    assert node.committed() == SMALL and not (tmp_path / "vault.key").exists()
    node.end()
    (tmp_path / "vault.key").write_bytes(key)  # a crash left it
    (tmp_path / "vault.key").chmod(0o600)
    assert vaultkey.find(tmp_path, None, chip.tpm) == key and not (tmp_path / "vault.key").exists()
    (tmp_path / "vault.key").write_bytes(os.urandom(32))
    (tmp_path / "vault.key").chmod(0o600)
    with pytest.raises(VaultKeyError, match="different keys"):
        vaultkey.find(tmp_path, None, chip.tpm)


def test_a_key_that_is_not_the_vaults_is_not_sealed_and_its_file_stays(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, None)
    wrong = os.urandom(32)
    (tmp_path / "vault.key").write_bytes(wrong)
    with pytest.raises(VaultLocked):
        Node(tmp_path, tpm=chip.tpm).committed()
    assert (tmp_path / "vault.key").read_bytes() == wrong and not (tmp_path / "vault.tpm").exists()


def test_who_leaves_has_the_sealed_key_erased_even_without_the_tpm(tmp_path: Path, chip: SoftwareTpm) -> None:
    trained(tmp_path, chip.tpm)
    chip.stop()
    assert Node(tmp_path).vault.erase() == 1
    assert not (tmp_path / "vault.tpm").exists()


SCRIPT = """
import sys
from pathlib import Path
from freehold.node.tpm import Tpm
from tests.unit.node.vaults import SMALL, Node
node = Node(Path(sys.argv[1]), tpm=Tpm(sys.argv[2]))
if sys.argv[3] == "erase":
    node.vault.erase()
else:
    node.committed()
"""


@pytest.mark.parametrize("point", [*POINTS, *ERASED])
def test_a_kill_while_a_key_is_sealed_or_erased_loses_nothing(tmp_path: Path, chip: SoftwareTpm, point: str) -> None:
    erases = point in ERASED
    trained(tmp_path, chip.tpm if erases else None)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), chip.tcti, "erase" if erases else "read"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), VARIABLE: f"{point}=kill"}
    assert subprocess.run(command, env=environment, check=False, timeout=120).returncode == -9, point
    node = Node(tmp_path, tpm=chip.tpm)
    if erases:
        node.vault.erase()
        assert not (tmp_path / "vault.tpm").exists()
    else:
        assert node.committed() == SMALL and not (tmp_path / "vault.key").exists()


def test_settings_say_where_the_key_is(tmp_path: Path) -> None:
    def tpm(text: str) -> str:
        (tmp_path / "node.toml").write_text(f'name = "alice"\n{text}\n')
        return options_of(["--state", str(tmp_path)], {}).tpm

    assert (tpm(""), tpm('vault_key = "file"')) == ("", "")
    assert tpm('vault_key = "tpm"') == DEVICE
    assert tpm('vault_key = "tpm"\nvault_tpm = "swtpm:path=/s"') == "swtpm:path=/s"
    for slip in ('vault_key = "TPM"', 'vault_tpm = "device:/dev/tpmrm0"'):
        with pytest.raises(UsageError, match="vault_"):
            tpm(slip)
