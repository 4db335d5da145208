"""Randomness as a function of its arguments: seeds from a digest, uniform and normal numbers from a key and a position.

A counter-based generator (Salmon et al., SC 2011) has no state to carry along, so a step of local training draws the same
dropout mask alone, in a padded batch, and as one of a thousand clients under `vmap`. The mixing function is splitmix64's
(Steele, Lea, Flood, OOPSLA 2014). It is made for simulation and dropout, not for secrets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from freehold.core.batching import custom_vmap
from freehold.drawing import digest_seed


def generator(*parts: str | int) -> torch.Generator:
    """A torch generator that starts from `digest_seed(*parts)`."""
    return torch.Generator().manual_seed(digest_seed(*parts))


def fold(key: Tensor, data: Tensor | int) -> Tensor:
    """A new key from a key and a number, as `jax.random.fold_in`; int64, any shape that broadcasts."""
    return _mix(key + _mix(torch.as_tensor(data, dtype=torch.int64, device=key.device) * _GOLDEN + _GOLDEN))


def uniform(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1), of shape `shape`; number i in row-major order depends on `key` [] and i alone."""
    count = torch.arange(math.prod(shape), device=key.device)
    bits = _shift(_mix(key + count * _GOLDEN), 11)
    return (bits.to(torch.float64) * 2.0**-53).to(dtype).clamp(max=1 - torch.finfo(dtype).eps).reshape(tuple(shape))


@custom_vmap
def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers of shape `shape` (Box and Muller 1958), as `uniform`; none is beyond 6.8 standard deviations.

    They come in blocks of 128, of 64 hashes each: 32 bits of a hash for a radius or an angle.
    """
    exact = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    blocks = -(-math.prod(shape) // 128)
    bits = _mix_(key + torch.arange(64 * blocks, device=key.device) * _GOLDEN)
    first, second = bits.view(torch.int32).view(blocks, 2, 64).to(exact).unbind(1)
    radius = (first * 2.0**-32 + 0.5).clamp(min=2.0**-33).log_().mul_(-2).sqrt_()
    angle = second * (2.0**-32 * 2 * math.pi)
    pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)
    return pairs.view(-1)[: math.prod(shape)].to(dtype).reshape(tuple(shape))


@normal.def_vmap
def _normal_of_each(size: int, key: Tensor, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """One after the other: a client's numbers fit into the cache, those of a cohort do not."""
    return torch.stack([normal.fn(k, shape, dtype=dtype) for k in key.unbind(0)])


# splitmix64's constants, as signed 64-bit integers: torch has no unsigned arithmetic, and products wrap around the same.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _shift(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _mix_(z: Tensor) -> Tensor:
    """`_mix` in place: half of the time where many numbers are drawn. What is drawn in a model cannot be, it may be replayed."""
    for by, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        z.bitwise_xor_((z >> by).bitwise_and_((1 << (64 - by)) - 1))
        if factor != 1:
            z.mul_(factor)
    return z
