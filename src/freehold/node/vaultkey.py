"""The vault's key: 32 random bytes, a credential of systemd's where there is one, else <state>/vault.key, made at the first need.

Only the guard reads it. A key that a TPM seals is to be a third source here, before the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from freehold import durable
from freehold.errors import VaultKeyError
from freehold.node.encryption import KEY_BYTES

NAME = "vault.key"
"""Of the credential, and of the file in the state folder: beside the vault, so that a copy of that folder alone holds no key."""

VARIABLE = "CREDENTIALS_DIRECTORY"


def credentials() -> Path | None:
    """Where systemd lays the credentials of this service; None where it does not run under systemd, or has none."""
    found = os.environ.get(VARIABLE)
    return Path(found) if found else None


def find(state: Path, folder: Path | None) -> bytes | None:
    """The key; None if there is none yet. Raises VaultKeyError for a file that is no key, or not secret.

    `folder`: of the credentials.
    """
    if folder is not None and (path := folder / NAME).exists():
        # systemd lets the service's user read by an access control list, whose mask shows as the group's right to read.
        return _read(path, 0o027)
    path = state / NAME
    return _read(path, 0o077) if path.exists() else None


def make(state: Path) -> bytes:
    """Write a new key to the state folder. Raises OSError."""
    key = os.urandom(KEY_BYTES)
    durable.write(state / NAME, key, point="node.vault-key")
    return key


def erase(state: Path) -> None:
    """Delete the key in the state folder, if it is there; a credential is not Freehold's to delete. Raises OSError."""
    durable.remove(state / NAME, point="node.vault-key-erased")


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
