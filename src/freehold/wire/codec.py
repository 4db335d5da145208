"""Tensors as bytes: safetensors, written in one canonical order and read as if the sender were hostile.

Writing agrees byte for byte with the safetensors library. Reading is stricter than the library: names are unique, tensors
lie one after another without a gap, and nothing is allocated beyond what the bytes hold.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.errors import TensorsMalformed
from freehold.plan import Contribution, check_contribution
from freehold.wire.packing import Unpacked

HEADER_LIMIT_BYTES: Final = 1 << 20
CHUNK: Final = 1 << 14
_DROP_BYTES = 1 << 20
"""Elements looked at in one go: what is computed from them stays in the cache."""

_NAME_LIMIT, _RANK_LIMIT = 512, 16

_TAGS: Final = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""In the order in which the library writes them: wide ones first, so that each tensor is aligned."""
_DTYPES: Final = {tag: dtype for dtype, tag in _TAGS.items()}
_RANK: Final = {dtype: rank for rank, dtype in enumerate(_TAGS)}


class Bfloat16(NamedTuple):
    """A bfloat16 tensor as its bits, since numpy has no such dtype."""

    bits: NDArray[np.uint16]


Tensor: TypeAlias = NDArray[np.generic] | Bfloat16
Buffer: TypeAlias = bytes | memoryview
Source: TypeAlias = Buffer | Unpacked
"""Tensors as bytes; what is being unpacked can be gone through once."""


class Entry(NamedTuple):
    """Where a tensor lies: `view[begin:end]` are its bytes, little-endian, in C order."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as safetensors. The same tensors give the same bytes, in whatever order they come."""
    return b"".join(pieces(tensors))


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[Buffer]:
    """What `write` returns, piece by piece: first the header, then each tensor's own memory, not copied where it is C-ordered."""
    order = _order(tensors)
    yield _header((name, dtype, array.shape, array.nbytes) for name, dtype, array in order)
    for _, dtype, array in order:
        if array.size:
            yield np.ascontiguousarray(array, _stored(dtype)).data.cast("B")


def length(tensors: Mapping[str, Tensor]) -> int:
    """How many bytes `write` returns, without writing them."""
    order = _order(tensors)
    header = _header((name, dtype, array.shape, array.nbytes) for name, dtype, array in order)
    return len(header) + sum(array.nbytes for _, _, array in order)


def header(spec: Contribution) -> bytes:
    """What every contribution of this spec begins with, if nothing is said in it but the spec."""
    order = sorted(spec.tensors, key=lambda tensor: (_RANK[tensor.dtype], tensor.name.encode()))
    return _header((t.name, t.dtype, t.shape, math.prod(t.shape) * _stored(t.dtype).itemsize) for t in order)


def _order(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, NDArray[np.generic]]]:
    named = [(name, *_plain(name, tensor)) for name, tensor in tensors.items()]
    return sorted(named, key=lambda item: (_RANK[item[1]], item[0].encode()))


def _plain(name: str, tensor: Tensor) -> tuple[str, NDArray[np.generic]]:
    dtype, array = ("bfloat16", tensor.bits) if isinstance(tensor, Bfloat16) else (tensor.dtype.name, tensor)
    if dtype not in _TAGS or (dtype == "bfloat16" and array.dtype != np.uint16):
        raise TypeError(f"a tensor of dtype {array.dtype} cannot be written")
    if not 0 < len(name) <= _NAME_LIMIT or name == "__metadata__":
        raise ValueError(f"a tensor name of {len(name)} characters, or a reserved one, cannot be written")
    return dtype, array


def _header(order: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """`order`: name, dtype, shape and bytes."""
    entries, at = {}, 0
    for name, dtype, shape, nbytes in order:
        offsets = [at, at := at + nbytes]
        entries[name] = {"dtype": _TAGS[dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored(dtype: str) -> np.dtype[np.generic]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def layout(view: Source, *, header_limit_bytes: int = HEADER_LIMIT_BYTES) -> Mapping[str, Entry]:
    """Where each tensor lies, in the order of the bytes; raises TensorsMalformed for anything but whole, sound safetensors."""
    size = int.from_bytes(_head(view, 8), "little")
    if len(view) < 8 or not 2 <= size <= min(header_limit_bytes, len(view) - 8):
        _refuse("the header's length is wrong")
    try:
        header = json.loads(str(_head(view, 8 + size)[8:], "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        _refuse("the header is not JSON")
    if not isinstance(header, dict):
        _refuse("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("the metadata is not a map of strings")
    entries = sorted((_entry(name, fields, 8 + size) for name, fields in header.items()), key=lambda item: item[1][2:])
    at = 8 + size
    for _, entry in entries:
        if entry.begin != at:
            _refuse("tensors overlap or leave a gap")
        at = entry.end
    if at != len(view):
        _refuse("tensors do not fill the bytes")
    return dict(entries)


def _head(view: Source, length: int) -> Buffer:
    return view.head(length) if isinstance(view, Unpacked) else view[:length]


def _entry(name: str, fields: object, base: int) -> tuple[str, Entry]:
    if not 0 < len(name) <= _NAME_LIMIT or any("\ud800" <= letter <= "\udfff" for letter in name):
        _refuse("a tensor's name is empty, too long or not text")
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("a tensor's entry has other fields than dtype, shape and data_offsets")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    shape, offsets = _sizes(fields["shape"]), _sizes(fields["data_offsets"])
    if dtype is None or len(shape) > _RANK_LIMIT or len(offsets) != 2:
        _refuse("a tensor's dtype, rank or offsets are not known")
    begin, end = offsets
    # Python's integers do not overflow, and sizes below 2**63 in at most 16 dimensions stay small.
    if end - begin != math.prod(shape) * _stored(dtype).itemsize:
        _refuse("a tensor's shape does not fit its bytes")
    return name, Entry(dtype, shape, base + begin, base + end)


def _sizes(found: object) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(size) is int and 0 <= size < 1 << 63 for size in found):
        _refuse("a tensor's shape or offsets are not sizes")
    return tuple(found)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a name stands in the header twice")
    return found


def _refuse(what: str) -> NoReturn:
    raise TensorsMalformed(f"These are not the tensors that were announced: {what}.", hint="The sender has to write them anew.")


def arrays(view: Buffer) -> dict[str, NDArray[np.generic]]:
    """The tensors as read-only views of `view`; bfloat16, and what is not aligned, as a copy. Raises TensorsMalformed."""
    found = {}
    for name, entry in layout(view).items():
        array = flat(view, entry)
        if entry.dtype == "bool" and array.view(np.uint8).max(initial=0) > 1:
            _refuse("a bool is neither true nor false")
        if entry.dtype == "bfloat16":
            array = widened(array)
        elif not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        found[name] = array.reshape(entry.shape)
    return found


def flat(view: Buffer, entry: Entry) -> NDArray[np.generic]:
    """One tensor in one dimension, not copied; bfloat16 as its bits. It may be unaligned."""
    dtype = _stored(entry.dtype)
    return np.frombuffer(view, dtype, (entry.end - entry.begin) // dtype.itemsize, entry.begin)


def widened(bits: NDArray[np.generic]) -> NDArray[np.generic]:
    """Bits of bfloat16 as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def chunks(view: Source, entry: Entry) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    """One tensor in pieces of `CHUNK` elements, each with where it lies; bfloat16 as float32.

    Of a file that is mapped, what was read is dropped from memory again, so that large ones take little. Of what is being
    unpacked, tensors must be asked for in the order of `layout`, once.
    """
    for place, part in _unpacking(view, entry) if isinstance(view, Unpacked) else _looking(view, entry):
        yield place, widened(part) if entry.dtype == "bfloat16" else part


def _unpacking(view: Unpacked, entry: Entry) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    dtype = _stored(entry.dtype)
    size = (entry.end - entry.begin) // dtype.itemsize
    for begin in range(0, size, CHUNK):
        place = slice(begin, min(begin + CHUNK, size))
        yield place, np.frombuffer(view.take(entry.begin + begin * dtype.itemsize, (place.stop - begin) * dtype.itemsize), dtype)


def _looking(view: Buffer, entry: Entry) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    array = flat(view, entry)
    dropped = entry.begin
    for begin in range(0, array.size, CHUNK):
        part = array[begin : begin + CHUNK]
        yield slice(begin, begin + part.size), part
        read = entry.begin + (begin + part.size) * array.itemsize
        if read - dropped >= _DROP_BYTES:
            dropped = _drop(view, dropped, read)


def _drop(view: Buffer, begin: int, end: int) -> int:
    """Let the kernel take back whole pages of a mapped file; up to where it was done."""
    owner = view.obj if isinstance(view, memoryview) else view
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    # Only what nobody writes to: pages of a private mapping that was written would be lost.
    if isinstance(owner, mmap.mmap) and memoryview(view).readonly and memoryview(view).nbytes == len(owner) and first < last:
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)
    return end


def fitting(view: Source, spec: Contribution) -> Mapping[str, Entry]:
    """The layout of a contribution; raises TensorsMalformed, or SpecMismatch unless it is exactly what `spec` lists."""
    entries = layout(view)
    check_contribution(spec, {name: (entry.shape, entry.dtype) for name, entry in entries.items()})
    return entries


def check(view: Source, spec: Contribution) -> None:
    """Raise SpecMismatch or TensorsMalformed unless `view` holds exactly what `spec` lists, and each number is finite."""
    for entry in fitting(view, spec).values():
        if "float" in entry.dtype and not all(np.isfinite(part).all() for _, part in chunks(view, entry)):
            refuse_infinite()


def refuse_infinite() -> NoReturn:
    """Raise the TensorsMalformed of numbers that are not finite."""
    _refuse("a number is not finite")


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("Freehold's tallies and tensors are little-endian; this machine is not.")
