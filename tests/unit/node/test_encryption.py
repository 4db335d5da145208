"""Encryption of bodies: what was written comes back, and nothing else does."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.node import encryption
from freehold.node.encryption import InvalidTag, decrypted, encrypted, key_id

KEY, SALT, PIECE = bytes(range(32)), bytes(range(32, 64)), 64
WHOLE = PIECE + encryption.TAG_BYTES


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "PIECE_BYTES", PIECE)
        yield


def written(body: bytes, label: bytes = b"label") -> bytes:
    return b"".join(encrypted(KEY, SALT, label, body))


def read(body: bytes, length: int, *, key: bytes = KEY, salt: bytes = SALT, label: bytes = b"label") -> bytes:
    return b"".join(decrypted(key, salt, label, length, io.BytesIO(body)))


BODIES = st.binary(max_size=5 * PIECE) | st.sampled_from([bytes(PIECE * n) for n in range(4)])


@given(body=BODIES)
def test_what_was_written_is_read(body: bytes) -> None:
    found = written(body)
    assert read(found, len(body)) == body
    assert len(found) == len(body) + encryption.TAG_BYTES * max(1, -(-len(body) // PIECE))


@given(body=BODIES, data=st.data())
def test_one_flipped_bit_anywhere_is_noticed(body: bytes, data: st.DataObject) -> None:
    found = bytearray(written(body))
    found[data.draw(st.integers(0, len(found) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidTag):
        read(bytes(found), len(body))


@given(body=BODIES, data=st.data())
def test_what_is_cut_anywhere_is_noticed_whatever_length_is_said(body: bytes, data: st.DataObject) -> None:
    found = written(body)
    cut = data.draw(st.integers(0, len(found) - 1))
    for length in {len(body), max(0, cut - encryption.TAG_BYTES), cut // WHOLE * PIECE}:
        with pytest.raises(InvalidTag):
            read(found[:cut], length)


@given(pieces=st.permutations(range(4)).filter(lambda order: list(order) != [0, 1, 2, 3]))
def test_pieces_in_another_order_are_noticed(pieces: list[int]) -> None:
    found = written(os.urandom(4 * PIECE))
    moved = b"".join(found[n * WHOLE : (n + 1) * WHOLE] for n in pieces)
    with pytest.raises(InvalidTag):
        read(moved, 4 * PIECE)


def test_more_than_was_written_another_label_key_or_salt_is_noticed() -> None:
    body = bytes(3 * PIECE)
    found = written(body)
    with pytest.raises(InvalidTag):
        read(found + b"\0", len(body))
    with pytest.raises(InvalidTag):
        read(found, len(body), label=b"other")
    with pytest.raises(InvalidTag):
        read(found, len(body), key=SALT)
    with pytest.raises(InvalidTag):
        read(found, len(body), salt=KEY)
    assert key_id(KEY) != key_id(SALT) and KEY.hex() not in key_id(KEY)


def test_the_same_body_never_looks_the_same() -> None:
    assert b"".join(encrypted(KEY, os.urandom(32), b"", b"body")) != b"".join(encrypted(KEY, os.urandom(32), b"", b"body"))
