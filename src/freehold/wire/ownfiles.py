"""Key and certificate files that a user names: readable, and a key by its owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

from freehold.errors import CertificateUnfit


def read_file(path: Path) -> bytes:
    """What a file holds; raises CertificateUnfit."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateUnfit(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path, and the owner and mode of the file."
        ) from None


def check_private(path: Path) -> None:
    """Raise CertificateUnfit for a key that others than its owner may read or write."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise CertificateUnfit(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from None
    if mode & 0o077:
        raise CertificateUnfit(f"The key in {path} is open to others: its mode is {mode:04o}.", hint=f"chmod 600 {path}")
