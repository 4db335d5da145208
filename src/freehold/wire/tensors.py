"""PyTorch tensors in sealed memory, as the two children that run an algorithm's code take and give them."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from freehold.wire import codec
from freehold.wire.codec import Bfloat16
from freehold.wire.local import Memory


def packed(flat: Mapping[str, Tensor], name: str) -> int:
    """Sealed memory with these tensors as safetensors, written without another copy; the caller closes the descriptor."""
    memory = Memory(name)
    try:
        for piece in codec.pieces({key: _array(tensor.detach().cpu()) for key, tensor in flat.items()}):
            memory.write(piece)
        return memory.seal()
    except BaseException:
        os.close(memory.fd)
        raise


def unpacked(fd: int) -> dict[str, Tensor]:
    """The tensors behind a descriptor, mapped: what is written to is copied then, page by page. Raises TensorsMalformed."""
    length = os.fstat(fd).st_size
    mapped = mmap.mmap(fd, length, access=mmap.ACCESS_COPY) if length else b""
    with memoryview(mapped) as view:
        entries = codec.layout(view)
    found = {}
    for name, (kind, shape, begin, end) in entries.items():
        dtype = getattr(torch, kind)
        if begin == end:
            found[name] = torch.empty(shape, dtype=dtype)
        elif begin % dtype.itemsize:  # another writer did not align it
            found[name] = torch.frombuffer(bytearray(mapped[begin:end]), dtype=dtype).reshape(shape)
        else:
            found[name] = torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape), offset=begin).reshape(shape)
    return found


def _array(tensor: Tensor) -> codec.Tensor:
    if tensor.dtype == torch.bfloat16:
        return Bfloat16(tensor.view(torch.uint16).numpy())
    return tensor.numpy()
