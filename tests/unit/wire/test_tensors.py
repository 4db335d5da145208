"""Tensors in sealed memory: what comes out is what went in, and nobody else sees what is done to it."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from freehold.errors import TensorsMalformed
from freehold.wire.local import is_sealed, read, sealed
from freehold.wire.tensors import packed, unpacked

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
shapes = st.lists(st.integers(0, 4), max_size=3)


def closed(fd: int) -> bytes:
    body = read(fd)
    os.close(fd)
    return body


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.tuples(st.sampled_from(DTYPES), shapes), max_size=6))
def test_what_comes_out_is_what_went_in_and_what_the_library_reads(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    flat = {name: (torch.rand(shape, dtype=torch.float64) * 9).to(dtype) for name, (dtype, shape) in kinds.items()}
    fd = packed(flat, "test")
    assert is_sealed(fd)
    found = unpacked(fd)
    body = closed(fd)
    for again in (found, load(body)):
        assert again.keys() == flat.keys()
        assert all(again[k].dtype == v.dtype and torch.equal(again[k], v) for k, v in flat.items())
    assert body == save(flat)


def test_views_and_names_that_share_memory_are_written_each() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    fd = packed({"turned": whole.T, "part": whole[:, 1], "whole": whole, "again": whole}, "test")
    found = unpacked(fd)
    os.close(fd)
    assert torch.equal(found["turned"], whole.T) and torch.equal(found["part"], whole[:, 1])
    found["whole"] += 1
    assert torch.equal(found["again"], whole)


def test_what_is_changed_is_changed_here_alone() -> None:
    fd = packed({"x": torch.zeros(5000)}, "test")
    mine, other = unpacked(fd)["x"], unpacked(fd)["x"]
    mine += 1
    assert other.sum() == 0 and load(closed(fd))["x"].sum() == 0
    assert mine.sum() == 5000


def test_tensors_that_another_writer_did_not_align() -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    body = len(header).to_bytes(8, "little") + header + b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    fd = sealed(body, "test")
    found: dict[str, Tensor] = unpacked(fd)
    os.close(fd)
    assert found["a"].tolist() == [7] and found["b"].tolist() == [1.5, -2.0]


def test_an_empty_tensor_that_another_writer_did_not_align() -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[0],"data_offsets":[1,1]}}'
    fd = sealed(len(header).to_bytes(8, "little") + header + b"\x07", "test")
    found: dict[str, Tensor] = unpacked(fd)
    os.close(fd)
    assert found["b"].shape == (0,)


@pytest.mark.parametrize("body", [b"", b"\x00" * 9, b"\xff" * 64])
def test_what_is_no_safetensors_is_refused(body: bytes) -> None:
    fd = sealed(body, "test")
    with pytest.raises(TensorsMalformed):
        unpacked(fd)
    os.close(fd)
