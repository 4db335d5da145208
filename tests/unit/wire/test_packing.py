"""Compressed contributions: what is packed is unpacked, and nothing else gets through, nor takes time or memory."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import EncodingRefused, FreeholdError
from freehold.plan import Contribution, TensorSpec
from freehold.wire import codec
from freehold.wire.packing import Unpacked, packed
from freehold.wire.tally import FixedPointSum, layout_of

LIMIT = 1 << 20
SPEC = Contribution(
    compression="zstd",
    tensors=(
        TensorSpec(name="a", shape=(3, 70_000)),
        TensorSpec(name="b", shape=(2,), dtype="int64"),
        TensorSpec(name="c", shape=(40_000,), dtype="bfloat16"),
        TensorSpec(name="d", shape=(0,), dtype="float64"),
    ),
)


def zstd(body: bytes, **settings: object) -> bytes:
    return b"".join(packed(body)) if not settings else zstandard.ZstdCompressor(**settings).compress(body)  # type: ignore[arg-type]


def tensors() -> bytes:
    draw = np.random.default_rng(0)
    bits = (draw.normal(size=40_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    a = draw.normal(size=(3, 70_000)).astype(np.float32)
    return codec.write({"a": a, "b": np.array([-4, 9]), "c": codec.Bfloat16(bits), "d": np.zeros(0)})


def summed(spec: Contribution, body: bytes, weight: float = 3.0) -> bytes:
    memory = memoryview(bytearray(layout_of(spec).length))
    FixedPointSum(spec, memory, most_clients=4).add(body, weight)
    return bytes(memory)


def unpacked(body: bytes, limit_bytes: int = LIMIT, piece: int = 1000) -> bytes:
    found = Unpacked(body, limit_bytes=limit_bytes)
    return b"".join(found.take(at, min(piece, len(found) - at)) for at in range(0, len(found), piece))


@given(st.binary(max_size=5000), st.integers(1, 6000), st.integers(0, 300))
def test_what_is_packed_is_unpacked(body: bytes, piece: int, head: int) -> None:
    frame = zstd(body)
    assert unpacked(frame, piece=piece) == body == unpacked(zstd(body, write_checksum=True))
    found = Unpacked(frame, limit_bytes=len(body))
    assert len(found) == len(body)
    assert found.head(head) == found.head(head) == body[:head], "the head is there as often as it is asked for"


def test_bytes_may_be_read_over_but_not_read_again() -> None:
    body = bytes(range(256)) * 1000
    found = Unpacked(zstd(body), limit_bytes=LIMIT)
    assert found.take(200_000, 56_000) == body[200_000:]
    with pytest.raises(ValueError, match="read over"):
        found.take(0, 1)


def test_the_sum_of_what_is_packed_is_that_of_what_is_not() -> None:
    body = tensors()
    plain = Contribution(scale=SPEC.scale, tensors=SPEC.tensors)
    assert len(zstd(body)) < len(body)
    assert summed(SPEC, zstd(body)) == summed(SPEC, zstd(body, write_checksum=True)) == summed(plain, body)


def test_the_same_tensors_give_the_same_bytes() -> None:
    assert zstd(tensors()) == zstd(tensors())


def blocks(count: int, size: int, *, window: int = 0x58) -> bytes:
    """A frame of `size` bytes, as it says, in which empty blocks come before the end."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0b10000000, window]) + size.to_bytes(4, "little")
    return header + bytes(3) * count + b"\x01\x00\x00"


GOOD = zstd(bytes(range(256)) * 100)
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00spam"

FRAMES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no zstd frame"),
    "a byte": (b"(", "no zstd frame"),
    "junk": (b"junk" * 20, "no zstd frame"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(60), "no zstd frame"),
    "the beginning of a header": (GOOD[:5], "header is damaged"),
    "the beginning of a frame": (GOOD[:9], "too early"),
    "an end that is missing": (GOOD[:-1], "too early"),
    "a checksum that is missing": (zstd(b"spam" * 99, write_checksum=True)[:-4], "too early"),
    "a checksum that is wrong": (zstd(b"spam" * 99, write_checksum=True)[:-4] + b"spam", "it is damaged"),
    "a byte behind it": (GOOD + b"\x00", "something follows"),
    "two frames": (GOOD + GOOD, "something follows"),
    "an empty frame behind it": (GOOD + zstd(b""), "something follows"),
    "a frame to skip behind it": (GOOD + SKIPPED, "something follows"),
    "a frame to skip before it": (SKIPPED + GOOD, "no zstd frame"),
    "only a frame to skip": (SKIPPED, "no zstd frame"),
    "a frame that does not say its length": (zstd(b"spam" * 99, write_content_size=False), "does not say its length"),
    "a bomb": (zstd(bytes(64 << 20)), "more than 33554432 bytes"),
    "a window of 64 MB": (blocks(0, 1000, window=0x80), "larger window"),
    "a single segment of 16 MB": (b"\x28\xb5\x2f\xfd\xa0" + (16 << 20).to_bytes(4, "little") + b"\x01\x00\x00", "larger window"),
    "a reserved kind of block": (blocks(0, 1000)[:-3] + b"\x07\x00\x00", "too early"),
    "a block that is too long": (blocks(0, 1000)[:-3] + b"\xf9\xff\xff" + bytes(0x1FFFFF), "it is damaged"),
    "empty blocks without end": (blocks(5_000_000, 1000), "something follows"),
    "fewer bytes than it says": (blocks(3, 1000), "it is damaged"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_no_honest_frame_is_refused_with_little_memory(name: str) -> None:
    body, why = FRAMES[name]
    tracemalloc.start()
    try:
        with pytest.raises(EncodingRefused, match=why):
            unpacked(body, limit_bytes=32 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def lying(by: Callable[[int], int]) -> bytes:
    """A frame that says another length than it has."""
    frame, length = bytearray(zstd(bytes(3000))), 3000 - 256
    at = frame.index(length.to_bytes(2, "little"))
    frame[at : at + 2] = by(length).to_bytes(2, "little")
    return bytes(frame)


@pytest.mark.parametrize("by", [lambda n: n - 1, lambda n: n + 1, lambda n: 0, lambda n: 60_000])
def test_a_frame_that_lies_about_its_length_is_refused(by: Callable[[int], int]) -> None:
    with pytest.raises(EncodingRefused):
        unpacked(lying(by))


def test_a_frame_for_a_dictionary_is_refused() -> None:
    dictionary = zstandard.train_dictionary(2048, [f"spam {i} and {i * i} eggs".encode() * 3 for i in range(2000)])
    with pytest.raises(EncodingRefused, match="dictionary"):
        unpacked(zstd(b"spam 7 and 49 eggs" * 9, dict_data=dictionary))


@given(st.binary(max_size=300), st.integers(0, 2**31), st.booleans())
def test_mutated_frames_raise_nothing_else(junk: bytes, at: int, cut: bool) -> None:
    whole = zstd(codec.write({"a": np.ones((3, 70), np.float32), "b": np.ones(2, np.int64)}))
    place = at % (len(whole) + 1)
    hostile = whole[:place] + junk + (b"" if cut else whole[place + len(junk) :])
    spec = Contribution(
        compression="zstd", tensors=(TensorSpec(name="a", shape=(3, 70)), TensorSpec(name="b", shape=(2,), dtype="int64"))
    )
    try:
        summed(spec, hostile, 1.0)
    except FreeholdError as error:
        assert error.code in (114, 505, 506)


def test_a_contribution_is_unpacked_in_little_memory() -> None:
    spec = Contribution(compression="zstd", tensors=(TensorSpec(name="a", shape=(4 << 20,)),))
    frame = zstd(codec.write({"a": np.zeros(math.prod(spec.tensors[0].shape), np.float32)}))
    memory = memoryview(bytearray(layout_of(spec).length))
    tally = FixedPointSum(spec, memory, most_clients=1)
    tracemalloc.start()
    try:
        tally.add(frame, 1.0)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "body"), [("packed", zstd(tensors())), ("plain", tensors())])
def test_a_sum_takes_what_its_plan_says_and_nothing_else(name: str, body: bytes) -> None:
    spec = Contribution(tensors=SPEC.tensors) if name == "packed" else SPEC
    with pytest.raises(FreeholdError) as caught:
        summed(spec, body)
    assert caught.value.code == (505 if name == "packed" else 506)
