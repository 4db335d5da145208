"""Contributions compressed with zstd: one frame that says its length, unpacked piece by piece as if the sender were hostile.

A frame is walked, block by block, before anything is unpacked: it must end where the bytes end. So no second frame, no bytes
behind it and no end that is missing get through, and nothing takes more memory than a window and a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

import zstandard

from freehold.errors import EncodingRefused

LEVEL: Final = 3

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_WINDOW_LIMIT_BYTES: Final = 1 << 23
_PIECE_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 18
"""The most that a frame's header takes."""

_BYTES_PER_BLOCK: Final = 256
"""A sender's blocks hold thousands of bytes. Without a least size, empty ones could be walked for minutes."""

_RLE, _RESERVED = 1, 3


def packed(view: bytes | memoryview) -> Iterator[bytes]:
    """The bytes as one zstd frame that says their length, piece by piece."""
    packer = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=len(view))
    for begin in range(0, len(view), _PIECE_BYTES):
        if piece := packer.compress(view[begin : begin + _PIECE_BYTES]):
            yield piece
    yield packer.flush()


class Unpacked:
    """What a frame holds, read once from its beginning to its end. It looks like bytes to who takes them in that order."""

    def __init__(self, view: bytes | memoryview, *, limit_bytes: int) -> None:
        """Raises EncodingRefused, before anything is unpacked, unless `view` is one frame of at most `limit_bytes`."""
        self._length = _checked(view, limit_bytes)
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT_BYTES)
        self._reader = unpacker.stream_reader(view, read_size=_PIECE_BYTES, read_across_frames=False)
        self._at = 0
        self._head = b""

    def __len__(self) -> int:
        return self._length

    def head(self, length: int) -> bytes:
        """The first bytes, as often as asked for before any others are taken; fewer where there are no more."""
        length = min(length, self._length)
        if length > len(self._head):
            self._head += self._next(length - len(self._head))
        return self._head[:length]

    def take(self, begin: int, length: int) -> bytes:
        """The bytes from `begin` on; what lies before is read over. Raises EncodingRefused where they cannot be unpacked."""
        if begin < self._at:
            raise ValueError("bytes that were read over")
        while begin > self._at:
            self._next(min(begin - self._at, _PIECE_BYTES))
        return self._next(length)

    def _next(self, length: int) -> bytes:
        found = bytearray()
        try:
            while len(found) < length and (piece := self._reader.read(length - len(found))):
                found += piece
            self._at += len(found)
            # Past the last byte the frame has a checksum, perhaps, and must have an end.
            whole = len(found) == length and (self._at < self._length or not self._reader.read(1))
        except zstandard.ZstdError:
            whole = False
        if not whole:
            _refuse("it is damaged")
        return bytes(found)


def _checked(view: bytes | memoryview, limit_bytes: int) -> int:
    """The length of what the one frame in `view` holds."""
    head = bytes(view[:_HEAD_BYTES])
    if head[:4] != _MAGIC:
        _refuse("it is no zstd frame")
    try:
        frame, at = zstandard.get_frame_parameters(head), zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        _refuse("its header is damaged")
    # Of a frame that does not say its length, zstd says that it is the largest there is.
    if frame.content_size > limit_bytes:
        _refuse(f"it does not say its length, or is of more than {limit_bytes} bytes")
    if frame.window_size > _WINDOW_LIMIT_BYTES or frame.dict_id:
        _refuse("it needs a larger window, or a dictionary")
    end = _end(view, at, 16 + frame.content_size // _BYTES_PER_BLOCK) + 4 * frame.has_checksum
    if end != len(view):
        _refuse("it ends too early, or something follows")
    return frame.content_size


def _end(view: bytes | memoryview, at: int, most_blocks: int) -> int:
    """Where the last block of a frame ends, as the block headers say it; RFC 8878, section 3.1.1.2."""
    for _ in range(most_blocks):
        header = int.from_bytes(view[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == _RESERVED or at + 3 > len(view):
            break
        at += 3 + (1 if kind == _RLE else size)
        if last:
            return at
    return -1


def _refuse(what: str) -> NoReturn:
    raise EncodingRefused(
        f"A compressed contribution cannot be unpacked: {what}.", hint="The node has to compress it anew; look at its release."
    )
