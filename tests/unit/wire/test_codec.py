from __future__ import annotations

import contextlib
import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from freehold.errors import FreeholdError, SpecMismatch, TensorsMalformed
from freehold.plan import Contribution, TensorSpec
from freehold.wire import codec
from freehold.wire.codec import Bfloat16

Header = dict[str, object]

DTYPES = st.sampled_from(["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"])
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda name: name != "__metadata__")


def any_array() -> st.SearchStrategy[NDArray[np.generic]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, shapes))


def framed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str = "F32", shape: object = (1,), begin: object = 0, end: object = 4) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@given(st.dictionaries(NAMES, any_array(), max_size=5))
def test_what_is_written_is_read_and_is_what_the_library_writes(tensors: dict[str, NDArray[np.generic]]) -> None:
    body = codec.write(tensors)
    assert len(body) == codec.length(tensors)
    assert body == codec.write(dict(reversed(tensors.items())))
    if tensors:
        contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
        assert body == safetensors.numpy.save(contiguous)
    found = codec.arrays(body)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


def test_large_tensors_are_neither_copied_nor_joined() -> None:
    array = np.ones(1 << 20, np.float32)
    _, piece = codec.pieces({"a": array})
    assert np.shares_memory(np.frombuffer(piece, np.float32), array)
    body = memoryview(codec.write({"a": array}))
    assert np.shares_memory(codec.arrays(body)["a"], np.frombuffer(body, np.uint8))


def test_arrays_of_any_order_are_written_as_they_look() -> None:
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert (codec.arrays(codec.write({"a": fortran, "b": fortran[:, ::2].astype(">f8")}))["b"] == fortran[:, ::2]).all()


def test_bfloat16_travels_as_bits_and_is_read_as_float32() -> None:
    bits = (np.array([1.5, -2.0, 0.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    body = codec.write({"a": Bfloat16(bits), "b": np.zeros(1, np.float32)})
    assert codec.layout(body)["a"].dtype == "bfloat16"
    assert codec.arrays(body)["a"].tolist() == [1.5, -2.0, 0.0]


@pytest.mark.parametrize(
    "tensors", [{"a": np.zeros(1, np.complex64)}, {"a": np.array(["x"])}, {"": np.zeros(1)}, {"a": Bfloat16(np.zeros(1))}]
)
def test_what_has_no_place_in_safetensors_is_not_written(tensors: dict[str, codec.Tensor]) -> None:
    with pytest.raises((TypeError, ValueError)):
        codec.write(tensors)


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x00",
    "a huge header": (2**63).to_bytes(8, "little") + b"{}",
    "a header beyond the end": (100).to_bytes(8, "little") + b"{}",
    "no header": bytes(8),
    "not JSON": framed(b"{]"),
    "not UTF-8": framed(b'{"\xff":1}'),
    "UTF-16": framed("{}".encode("utf-16")),
    "not an object": framed(b"[1]"),
    "deep": framed(b"[" * 100_000),
    "deep objects": framed(b'{"a":' * 100_000),
    "a huge number": framed(b'{"a":' + b"9" * 100_000 + b"}"),
    "NaN": framed(b'{"a":NaN}'),
    "not an entry": framed({"a": 1}),
    "a missing field": framed({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "one field more": framed({"a": {**entry(), "x": 1}}, bytes(4)),
    "an unknown dtype": framed({"a": entry("F8_E4M3", (4,))}, bytes(4)),
    "a dtype that is a list": framed({"a": {**entry(), "dtype": ["F32"]}}, bytes(4)),
    "a negative size": framed({"a": entry(shape=(-1, -1))}, bytes(4)),
    "a size that is a float": framed({"a": entry(shape=(1.0,))}, bytes(4)),
    "a size that is true": framed({"a": entry(shape=(True,))}, bytes(4)),
    "an overflowing shape": framed({"a": entry(shape=(2**62, 4, 2**62))}, bytes(4)),
    "a shape that wraps around": framed({"a": entry(shape=(2**32, 2**32), end=0)}),
    "very many dimensions": framed({"a": entry(shape=[1] * 100)}, bytes(4)),
    "offsets the wrong way": framed({"a": entry(begin=4, end=0)}, bytes(4)),
    "a negative offset": framed({"a": entry(begin=-4, end=0)}, bytes(4)),
    "three offsets": framed({"a": {**entry(), "data_offsets": [0, 4, 8]}}, bytes(4)),
    "a shape of another length": framed({"a": entry(shape=(2,))}, bytes(4)),
    "beyond the end": framed({"a": entry()}, bytes(3)),
    "bytes left over": framed({"a": entry()}, bytes(5)),
    "a hole at the start": framed({"a": entry(begin=4, end=8)}, bytes(8)),
    "a hole": framed({"a": entry(), "b": entry(begin=8, end=12)}, bytes(12)),
    "overlapping": framed({"a": entry(), "b": entry(begin=2, end=6)}, bytes(6)),
    "the same bytes twice": framed({"a": entry(), "b": entry()}, bytes(4)),
    "a name twice": framed(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "an empty name": framed({"": entry()}, bytes(4)),
    "a long name": framed({"a" * 1000: entry()}, bytes(4)),
    "half a character as a name": framed(b'{"\\ud800":%b}' % json.dumps(entry()).encode(), bytes(4)),
    "metadata that is no map": framed({"__metadata__": ["a"], "a": entry()}, bytes(4)),
    "metadata that is no text": framed({"__metadata__": {"a": 1}, "a": entry()}, bytes(4)),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused_without_much_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TensorsMalformed):
            codec.layout(memoryview(body))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_mutated_bytes_raise_nothing_else(junk: bytes, at: int, cut: bool) -> None:
    body = codec.write({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.int64)})
    mutated = body[: at % len(body)] if cut else body[:at] + junk + body[at + len(junk) :]
    for read in (codec.arrays, lambda view: codec.check(view, SPEC)):
        with contextlib.suppress(TensorsMalformed, SpecMismatch):
            read(mutated)


def test_metadata_of_strings_is_read_over_and_a_header_above_the_limit_is_not_read() -> None:
    body = safetensors.numpy.save({"a": np.ones(1, np.float32)}, {"format": "pt"})
    assert list(codec.arrays(body)) == ["a"]
    with pytest.raises(TensorsMalformed):
        codec.layout(body, header_limit_bytes=16)


def test_a_bool_is_true_or_false() -> None:
    with pytest.raises(TensorsMalformed):
        codec.arrays(framed({"a": entry("BOOL", (1,), 0, 1)}, b"\x02"))


SPEC = Contribution(
    tensors=(
        TensorSpec(name="a", shape=(3,)),
        TensorSpec(name="b", shape=(2, 2), dtype="int64"),
        TensorSpec(name="c", shape=(2,), dtype="bfloat16"),
    )
)


def good() -> dict[str, codec.Tensor]:
    return {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.int64), "c": Bfloat16(np.zeros(2, np.uint16))}


def test_a_contribution_that_fits_passes() -> None:
    codec.check(codec.write(good()), SPEC)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"x": np.ones(1)}, SpecMismatch),
        ({"a": np.ones(4, np.float32)}, SpecMismatch),
        ({"a": np.ones(3, np.float64)}, SpecMismatch),
        ({"b": np.ones(4, np.int64)}, SpecMismatch),
        ({"a": np.array([1, np.nan, 1], np.float32)}, TensorsMalformed),
        ({"a": np.array([1, 1, -np.inf], np.float32)}, TensorsMalformed),
        ({"c": Bfloat16(np.array([0, 0x7F80], np.uint16))}, TensorsMalformed),
    ],
)
def test_a_contribution_that_does_not_fit_is_refused(change: dict[str, codec.Tensor], kind: type[FreeholdError]) -> None:
    with pytest.raises(kind):
        codec.check(codec.write({**good(), **change}), SPEC)


def test_a_nan_after_many_numbers_is_found_with_little_memory() -> None:
    array = np.zeros(1 << 20, np.float32)
    array[-1] = np.nan
    body = codec.write({"a": array})
    spec = Contribution(tensors=(TensorSpec(name="a", shape=(1 << 20,)),))
    tracemalloc.start()
    try:
        with pytest.raises(TensorsMalformed):
            codec.check(body, spec)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
