"""Random numbers as a function of a key and a position: their distribution, and golden values that must never change."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import vmap

from freehold.core import fold, generator, normal, uniform
from freehold.drawing import digest_seed

F64 = torch.float64


def key(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int64)


def test_a_digest_seed_is_the_same_on_every_machine_and_for_ever() -> None:
    assert digest_seed("order", 0, "c1", 3) == 5135678162547536831
    assert digest_seed() == 6510301506637419378


def test_a_digest_seed_depends_on_every_part_its_type_and_their_order() -> None:
    parts = [(1, 2), (2, 1), ("1", 2), (12,), ("12",), (1, 2, "")]
    assert len({digest_seed(*p) for p in parts}) == len(parts)
    assert all(0 <= digest_seed("x", i) < 2**63 for i in range(200))


def test_a_generator_starts_from_its_digest() -> None:
    a, b, c = (torch.rand(3, generator=generator("rows", seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_numbers_are_the_same_for_ever() -> None:
    assert uniform(key(0), (3,), dtype=F64).tolist() == [0.0, 0.8833108082136426, 0.43152799704850997]
    assert torch.allclose(normal(key(1), (2,), dtype=F64), torch.tensor([0.23572937454671358, -0.5083979841727435], dtype=F64))
    assert [int(fold(key(0), 0)), int(fold(key(5), -1))] == [5197578548964807871, -5278393320434088484]


def test_mixing_is_splitmix64() -> None:
    """The first outputs of Vigna's reference generator for the state 1234567: number i is the mix of key + i * golden."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    golden = 0x9E3779B97F4A7C15
    start = (1234567 + golden) % 2**64
    ours = uniform(key(start - 2**64 if start >= 2**63 else start), (5,), dtype=F64)
    assert torch.equal(ours, torch.tensor([(r >> 11) * 2.0**-53 for r in reference], dtype=F64))


@pytest.mark.parametrize("number", [0, 1, -1, 2**62, 12345])
def test_uniform_numbers_are_uniform(number: int) -> None:
    u = uniform(key(number), (20_000,), dtype=F64)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003


@pytest.mark.parametrize("number", [0, 7, 2**61])
def test_normal_numbers_are_standard_normal(number: int) -> None:
    z = normal(key(number), (20_000,), dtype=F64)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert abs(float((z**3).mean())) < 0.1 and abs(float((z**4).mean()) - 3) < 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_normal_numbers_are_finite_and_the_first_ones_do_not_depend_on_how_many_are_asked_for(dtype: torch.dtype) -> None:
    z = normal(key(3), (300, 1000), dtype=dtype)
    assert z.dtype == dtype and bool(z.isfinite().all()) and 4 < float(z.abs().max()) < 6.8
    assert torch.equal(normal(key(3), (130,), dtype=dtype), z.flatten()[:130])
    assert normal(key(3), (0, 4), dtype=dtype).shape == (0, 4)


def test_normal_numbers_have_nothing_to_do_with_each_other() -> None:
    z = normal(key(11), (2000, 128), dtype=F64)
    correlation = torch.corrcoef(z.T) - torch.eye(128, dtype=F64)
    assert float(correlation.abs().max()) < 0.12  # 5.4 standard errors


def test_a_cohort_draws_what_each_client_draws_alone() -> None:
    keys = torch.arange(5)
    drawn = vmap(lambda k: normal(fold(k, 2), (3, 50), dtype=torch.float32))(keys)
    assert all(torch.equal(drawn[i], normal(fold(k, 2), (3, 50), dtype=torch.float32)) for i, k in enumerate(keys))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_never_reaches_one(dtype: torch.dtype) -> None:
    assert float(uniform(key(3), (200_000,), dtype=dtype).max()) < 1


def test_keys_that_are_near_each_other_have_nothing_in_common() -> None:
    keys = torch.arange(64)
    draws = vmap(lambda k: uniform(k, (500,), dtype=F64))(keys)
    correlation = torch.corrcoef(draws) - torch.eye(64, dtype=F64)
    assert float(correlation.abs().max()) < 0.25  # 5.6 standard errors
    folded = torch.stack([fold(key(5), i) for i in range(-50, 50)])
    assert len(folded.unique()) == 100
    assert stats.kstest(torch.stack([uniform(k, (1,), dtype=F64)[0] for k in folded]).numpy(), "uniform").pvalue > 1e-3


def test_folding_does_not_commute_and_does_not_collide() -> None:
    pairs = torch.stack([fold(fold(key(9), a), b) for a in range(40) for b in range(40)])
    assert len(pairs.unique()) == 1600


def test_number_i_depends_on_the_key_and_i_alone() -> None:
    long = uniform(key(11), (100,), dtype=F64)
    assert torch.equal(uniform(key(11), (10,), dtype=F64), long[:10])
    assert torch.equal(uniform(key(11), (4, 25), dtype=F64).flatten(), long)
    alone = torch.stack([normal(k, (2, 3), dtype=F64) for k in torch.arange(5)])
    assert torch.equal(vmap(lambda k: normal(k, (2, 3), dtype=F64))(torch.arange(5)), alone)


def test_an_empty_shape_is_one_number() -> None:
    assert uniform(key(1), (), dtype=F64).shape == () and uniform(key(1), (0, 3), dtype=F64).shape == (0, 3)
