"""The lines of a ledger, and what makes them stand: each has the digest of the one before, and a signature of the node's.

A line is JSON and ends with its signature, over all that stands before it. The digest of a line is that of all its bytes, so
that who checks the digests and the last signature has checked every byte; more signatures are looked at to say where it broke.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from freehold import durable
from freehold.errors import LedgerError
from freehold.wire.messages import LedgerHead

START = "0" * 64
"""What the first line has in place of the digest of the one before."""

FORMAT = 1
LIMIT_BYTES = 16_384
"""Of a line."""

_SIGNED = re.compile(rb'\{"prev":"([0-9a-f]{64})","n":([0-9]{1,15}),.*,"sig":"([0-9a-f]{128})"\}')
_TAIL = len(',"sig":""}') + 128
_LEDGER, _OTHER = b"freehold ledger\0", b"freehold budget\0"


class Head(NamedTuple):
    """Where a ledger stands."""

    n: int
    """The number of its last line; the first is 1."""
    hash: str
    """The digest of that line."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line, without its signature. Absent: it does not apply."""

    prev: str
    n: int
    time: float
    """Unix time by this machine's clock, which may jump; the order is that of `n`."""
    kind: str
    peer: str | None = None
    study: str | None = None
    plan: str | None = None
    run: str | None = None
    round: int | None = None
    dataset: str | None = None
    messages: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    unit: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    sandbox: str | None = None
    release: str | None = None
    verdict: str | None = None
    code: int | None = None
    text: str | None = None
    key: str | None = None
    budget: str | None = None
    format: int | None = None
    kinds: dict[str, tuple[int, int]] | None = None
    """Of control messages: kind -> how many, and bytes of their bodies."""


class _Read(Line, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    sig: str


def digest(line: bytes) -> str:
    """Of a line with its signature, without the line feed."""
    return hashlib.sha256(line).hexdigest()


class Key:
    """The node's ledger key, which signs; only the guard reads it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    def sign(self, line: Line) -> bytes:
        """The line as it is written, without the line feed."""
        body = msgspec.json.encode(line)[:-1]
        return body + b',"sig":"' + self._private.sign(_LEDGER + body).hex().encode() + b'"}'

    def seal(self, body: bytes) -> str:
        """A signature of something that is no line."""
        return self._private.sign(_OTHER + body).hex()

    def show(self, head: Head) -> LedgerHead:
        """Where the ledger stands, for a witness."""
        unsigned = LedgerHead(n=head.n, hash=head.hash, key=self.public, signature="")
        return LedgerHead(n=head.n, hash=head.hash, key=self.public, signature=self._private.sign(unsigned.body()).hex())


def is_sealed(body: bytes, signature: str, public: str) -> bool:
    """Whether `Key.seal` made this signature, with the private half of this key."""
    return _holds(public, signature, _OTHER + body)


def public_key(folder: Path) -> str | None:
    """The public half, in hexadecimal, of the key in a ledger's folder; None where there is none that can be read."""
    path = folder / "key.pem"
    return key_in(folder).public if path.is_file() and os.access(path, os.R_OK) else None


def key_in(folder: Path) -> Key:
    """The key in a ledger's folder, made if there is none yet; LedgerError if it cannot be read or is open to others."""
    path = folder / "key.pem"
    try:
        if not path.exists():
            private = Ed25519PrivateKey.generate()
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            durable.write(path, pem, point="node.ledger-key")
        if path.stat().st_mode & 0o077:
            raise LedgerError(f"{path} can be read by others.", hint=f"chmod 600 {path}, and think about who has read it.")
        found = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise unusable(folder, error) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise LedgerError(f"{path} is no key of a ledger.", hint="Restore it from a backup.")
    return Key(found)


def unusable(folder: Path, error: Exception) -> LedgerError:
    """The error for a folder that the operating system, or a parser, complains about."""
    return LedgerError(
        f"The ledger in {folder} cannot be used: {getattr(error, 'strerror', None) or type(error).__name__}.",
        hint="Make room on the disk and look at the folder's owner and mode; nothing was sent.",
    )


def is_signed(line: bytes, public: str) -> bool:
    """Whether a line has the form of one, and its signature is that of this key."""
    found = _SIGNED.fullmatch(line)
    return found is not None and _holds(public, found[3].decode(), _LEDGER + line[:-_TAIL])


def _holds(public: str, signature: str, body: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), body)
    except (InvalidSignature, ValueError):
        return False
    return True


def parse(line: bytes) -> Line:
    """A line that was written here; raises ValueError for anything else."""
    if len(line) > LIMIT_BYTES:
        raise ValueError("too long")
    return msgspec.json.decode(line, type=_Read)


def raw_lines(path: Path) -> Iterator[bytes]:
    """Each line with its line feed; what lacks one comes last."""
    with path.open("rb") as file:
        yield from file


def digest_of_line(path: Path, n: int, head: Head) -> str:
    """The digest of a line of a ledger that ends with `head`; "" where there is none."""
    if n == head.n:
        return head.hash
    line = next(islice(raw_lines(path), n - 1, n), b"")
    return digest(line.rstrip(b"\n")) if line else ""


def last_line(fd: int) -> tuple[bytes, int]:
    """(the last line that is whole, b"" if none is; the length of the file up to its line feed)."""
    size = os.fstat(fd).st_size
    whole, tail = size, b""
    while whole:
        at = max(0, size - len(tail) - LIMIT_BYTES)
        tail = os.pread(fd, size - len(tail) - at, at) + tail
        ends = tail.rfind(b"\n")
        if ends >= 0 and (at == 0 or tail.rfind(b"\n", 0, ends) >= 0):
            return tail[tail.rfind(b"\n", 0, ends) + 1 : ends], at + ends + 1
        if at == 0:
            break
    return b"", 0
