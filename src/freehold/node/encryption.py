"""Bodies as they lie in the vault: AES-256-GCM in pieces of 1 MiB, so that a state of any size needs no second whole copy.

Each body has a key of its own, derived with HKDF-SHA256 from the vault's key and 32 random bytes, its salt; so a nonce is the
number of a piece, and none is used twice with one key. Bound to each piece: the body's label and length, the number of the
piece, and whether it is the last one. A piece that was changed, moved, cut off or taken from elsewhere raises `InvalidTag`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["InvalidTag", "decrypted", "encrypted", "key_id"]

KEY_BYTES = SALT_BYTES = 32
PIECE_BYTES = 1 << 20
TAG_BYTES = 16


class Source(Protocol):
    """What an encrypted body is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer than `size` only at the end."""


def encrypted(key: bytes, salt: bytes, label: bytes, body: bytes | memoryview) -> Iterator[bytes]:
    """The pieces of a body; `salt` must be fresh and random."""
    cipher, length = AESGCM(_derived(key, salt, b"body", KEY_BYTES)), len(body)
    view = memoryview(body)
    for number in range(_pieces(length)):
        piece = view[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        yield cipher.encrypt(_nonce(number), piece, _bound(label, length, number))


def decrypted(key: bytes, salt: bytes, label: bytes, length: int, source: Source) -> Iterator[bytes]:
    """The body, piece by piece; each is as it was written, but only who has read to the end has all. Raises InvalidTag."""
    cipher = AESGCM(_derived(key, salt, b"body", KEY_BYTES))
    for number in range(_pieces(length)):
        size = min(PIECE_BYTES, length - number * PIECE_BYTES) + TAG_BYTES
        piece = source.read(size)
        if len(piece) != size:
            raise InvalidTag
        yield cipher.decrypt(_nonce(number), piece, _bound(label, length, number))
    if source.read(1):
        raise InvalidTag


def key_id(key: bytes) -> str:
    """What tells one key from another, and says nothing of it."""
    return _derived(key, None, b"id", 8).hex()


def _pieces(length: int) -> int:
    return max(1, -(-length // PIECE_BYTES))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(label: bytes, length: int, number: int) -> bytes:
    last = number == _pieces(length) - 1
    return hashlib.sha256(label).digest() + length.to_bytes(8, "big") + number.to_bytes(8, "big") + bytes([last])


def _derived(key: bytes, salt: bytes | None, use: bytes, size: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=size, salt=salt, info=b"freehold vault 1 " + use).derive(key)
