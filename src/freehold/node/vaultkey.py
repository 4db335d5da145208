"""The vault's key: 32 random bytes, a credential of systemd's where there is one, else <state>/vault.key, made at the first need.

Only the guard reads it. With `vault_key = "tpm"` it is sealed by a TPM instead, as <state>/vault.tpm, and in no file in clear.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from freehold import durable
from freehold.errors import VaultKeyError
from freehold.node.encryption import KEY_BYTES, key_id
from freehold.node.tpm import Sealed, Tpm, parse

NAME = "vault.key"
"""Of the credential, and of the file in the state folder: beside the vault, so that a copy of that folder alone holds no key."""

SEALED = "vault.tpm"
"""The key as a TPM has sealed it, in the state folder."""

VARIABLE = "CREDENTIALS_DIRECTORY"


def credentials() -> Path | None:
    """Where systemd lays the credentials of this service; None where it does not run under systemd, or has none."""
    found = os.environ.get(VARIABLE)
    return Path(found) if found else None


def find(state: Path, folder: Path | None, tpm: Tpm | None = None, *, known: str | None = None) -> bytes | None:
    """The key; None if there is none yet. Raises VaultKeyError for a file that is no key, or not secret, or another TPM's.

    `folder`: of the credentials. `tpm`: which seals the key of a node that is told so; a file's key comes to be sealed by it,
    if it is the one that the vault was written with: its `key_id` is `known`, or there is none yet.
    """
    if folder is not None and (path := folder / NAME).exists():
        # systemd lets the service's user read by an access control list, whose mask shows as the group's right to read.
        return _read(path, 0o027)
    path, sealed = state / NAME, state / SEALED
    plain = _read(path, 0o077) if path.exists() else None
    if tpm is None:
        if plain is None and sealed.exists():
            raise VaultKeyError(
                f"The vault's key is sealed by a TPM, in {sealed}, and this node is not told to ask one.",
                hint='Say vault_key = "tpm" in node.toml.',
            )
        return plain
    if not sealed.exists():
        if plain is None or (known is not None and key_id(plain) != known):
            return plain
        return _moved(state, plain, tpm)
    found = tpm.unseal(_sealed(sealed))
    if len(found) != KEY_BYTES:
        raise VaultKeyError(f"{sealed} holds no vault's key.", hint="Restore it from a backup; no new key is made.")
    if plain is not None:
        if plain != found:
            raise VaultKeyError(
                f"{path} and {sealed} hold different keys.", hint="Move away the one that the vault was not written with."
            )
        _erase_file(state)  # a crash left it
    return found


def make(state: Path, tpm: Tpm | None = None) -> bytes:
    """Write a new key to the state folder, sealed where there is a TPM for it. Raises OSError and VaultKeyError."""
    key = os.urandom(KEY_BYTES)
    if tpm is not None:
        _seal(state, key, tpm)
    else:
        durable.write(state / NAME, key, point="node.vault-key")
    return key


def erase(state: Path) -> None:
    """Delete the key in the state folder, if it is there; a credential is not Freehold's to delete. Raises OSError."""
    _erase_file(state)
    durable.remove(state / SEALED, point="node.vault-sealed-erased")


def _moved(state: Path, key: bytes, tpm: Tpm) -> bytes:
    """A file's key becomes a sealed one; it is on the disk, and the TPM has given it back, before the file goes."""
    try:
        _seal(state, key, tpm)
        _erase_file(state)
    except OSError as error:
        raise VaultKeyError(f"{state / SEALED} cannot be written: {error.strerror}.", hint="Make room on the disk.") from None
    return key


def _seal(state: Path, key: bytes, tpm: Tpm) -> None:
    durable.write(state / SEALED, msgspec.json.encode(tpm.seal(key)) + b"\n", point="node.vault-sealed")


def _erase_file(state: Path) -> None:
    durable.remove(state / NAME, point="node.vault-key-erased")


def _sealed(path: Path) -> Sealed:
    try:
        return parse(path.read_bytes(), path)
    except OSError as error:
        raise VaultKeyError(f"{path} cannot be read: {error.strerror}.", hint="Look at its owner and mode.") from None


def _read(path: Path, forbidden: int) -> bytes:
    try:
        mode = path.stat().st_mode
        if mode & forbidden:
            raise VaultKeyError(f"{path} can be read by others.", hint=f"chmod 600 {path}, and think about who has read it.")
        key = path.read_bytes()
    except OSError as error:
        raise VaultKeyError(
            f"{path} cannot be read: {error.strerror}.", hint="Look at its owner; the node trains once it can read it."
        ) from None
    if len(key) != KEY_BYTES:
        raise VaultKeyError(
            f"{path} has {len(key)} bytes, and a vault's key has {KEY_BYTES}.",
            hint=f"Restore it from a backup. A new one is {KEY_BYTES} bytes of /dev/urandom, as they are, without a line feed.",
        )
    return key
