from __future__ import annotations

import mmap
import os
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.coordinator.run import OpenTally
from freehold.errors import CheckpointError, SpecMismatch, TensorsMalformed
from freehold.plan import Contribution, TensorSpec
from freehold.wire import codec, tally
from freehold.wire.tally import FixedPointSum

SPEC = Contribution(
    scale=20,
    tensors=(
        TensorSpec(name="w", shape=(2, 2)),
        TensorSpec(name="d", shape=(3,), dtype="float64"),
        TensorSpec(name="h", shape=(1,), dtype="bfloat16"),
        TensorSpec(name="n", shape=(), dtype="int64"),
        TensorSpec(name="none", shape=(0,)),
    ),
)
Numbers = tuple[list[float], list[float], int, int, float]


def memory(spec: Contribution = SPEC) -> memoryview:
    return memoryview(bytearray(tally.layout_of(spec).length))


def fresh(most_clients: int = 100) -> FixedPointSum:
    return FixedPointSum(SPEC, memory(), most_clients=most_clients)


def words(total: FixedPointSum) -> list[int]:
    return [total.heard, total.weight, *(int(x) for tensor in SPEC.tensors for x in total.tensor(tensor.name))]


def body(numbers: Numbers) -> bytes:
    w, d, h, n, _ = numbers
    return codec.write(
        {
            "w": np.array(w, np.float32).reshape(2, 2),
            "d": np.array(d, np.float64),
            "h": codec.Bfloat16(np.array([h], np.uint16)),
            "n": np.array(n, np.int64),
            "none": np.zeros(0, np.float32),
        }
    )


numbers = st.tuples(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    st.integers(0, 0x4900),
    st.integers(-(10**6), 10**6),
    st.integers(0, 10**4).map(float),
)


def oracle(all_numbers: list[Numbers]) -> list[int]:
    """The sum with Python's integers and fractions, from the definition."""

    def point(x: float) -> int:
        return round(Fraction(x) * 2**SPEC.scale)

    def bf16(bits: int) -> float:
        return float(np.array([bits << 16], np.uint32).view(np.float32)[0])

    total = [0] * 11
    for w, d, h, n, weight in all_numbers:
        floats = [*w, *d, bf16(h)]
        row = [1, point(weight), *(point(weight * x) for x in floats), int(weight) * n]
        total = [a + b for a, b in zip(total, row, strict=True)]
    return total


@given(st.lists(numbers, max_size=5), st.randoms())
def test_a_sum_is_exact_and_the_same_in_any_order(contributions: list[Numbers], random: Random) -> None:
    there, back = fresh(), fresh()
    for one in contributions:
        there.add(body(one), one[-1])
    random.shuffle(contributions)
    for one in contributions:
        back.add(body(one), one[-1])
    assert words(there) == words(back) == oracle(contributions)


@given(st.lists(numbers, max_size=3), st.lists(numbers, max_size=3))
def test_sums_merge_and_outlive_a_checkpoint(some: list[Numbers], others: list[Numbers]) -> None:
    one, other, again = fresh(), fresh(), fresh()
    for numbers_ in some:
        one.add(body(numbers_), numbers_[-1])
    for numbers_ in others:
        other.add(body(numbers_), numbers_[-1])
    again.load(b"".join(one.dump()))
    again.merge(other)
    assert words(again) == oracle([*some, *others])


def test_fractional_weights_round_each_product_half_to_even() -> None:
    spec = Contribution(scale=1, tensors=(TensorSpec(name="x", shape=(3,), dtype="float64"),))
    total = FixedPointSum(spec, memory(spec), most_clients=1)
    total.add(codec.write({"x": np.array([0.5, 1.5, -1.5])}), 0.5)
    assert total.tensor("x").tolist() == [0, 2, -2]


def test_large_tensors_are_summed_in_chunks() -> None:
    size = 3 * codec.CHUNK + 7
    spec = Contribution(tensors=(TensorSpec(name="x", shape=(size,)),))
    total = FixedPointSum(spec, memory(spec), most_clients=2)
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for _ in range(2):
        total.add(codec.write({"x": x}), 3.0)
    assert (total.tensor("x") == 2 * np.rint(3.0 * x.astype(np.float64) * 2**24).astype(np.int64)).all()


GOOD: Numbers = ([1.0] * 4, [1.0] * 3, 0, 1, 1.0)


@pytest.mark.parametrize(
    ("wrong", "weight"),
    [
        (([1.0, 1.0, 1.0, np.nan], [1.0] * 3, 0, 1, 1.0), 1.0),
        (([1.0] * 4, [1.0, np.inf, 1.0], 0, 1, 1.0), 1.0),
        (([1.0] * 4, [1.0, 1.0, -1e30], 0, 1, 1.0), 1.0),
        (([1.0] * 4, [1.0] * 3, 0x7F80, 1, 1.0), 1.0),
        (([1.0] * 4, [1.0] * 3, 0, 2**62, 1.0), 1.0),
        (([1.0] * 4, [1.0] * 3, 0, -(2**63), 1.0), 1.0),
        (GOOD, -1.0),
        (GOOD, float("nan")),
        (GOOD, float("inf")),
        (GOOD, 1e300),
        (GOOD, 0.5),  # whole numbers with a fraction
    ],
)
def test_what_cannot_be_added_changes_nothing(wrong: Numbers, weight: float) -> None:
    total = fresh()
    total.add(body(GOOD), 1.0)
    before = words(total)
    with pytest.raises(TensorsMalformed):
        total.add(body(wrong), weight)
    assert words(total) == before


@pytest.mark.parametrize("most_clients", [1, 3, 7])
def test_the_bound_is_exact_and_no_sum_overflows(most_clients: int) -> None:
    spec = Contribution(tensors=(TensorSpec(name="n", shape=(1,), dtype="int64"),))
    total = FixedPointSum(spec, memory(spec), most_clients=most_clients)
    most = 2**62 // most_clients
    with pytest.raises(TensorsMalformed):
        total.add(codec.write({"n": np.array([most + 1])}), 1.0)
    for _ in range(most_clients):
        total.add(codec.write({"n": np.array([-most])}), 1.0)
    assert total.tensor("n").tolist() == [-most * most_clients]
    with pytest.raises(ValueError, match="one contribution more"):
        total.add(codec.write({"n": np.array([0])}), 1.0)
    with pytest.raises(ValueError, match="too many clients"):
        total.merge(total)


def test_another_spec_is_refused() -> None:
    with pytest.raises(SpecMismatch):
        fresh().add(codec.write({"w": np.ones((2, 2), np.float32)}), 1.0)


@pytest.mark.parametrize("wrong", [b"", codec.write({"sum": np.zeros(3, np.int64)}), codec.write({"x": np.zeros(11, np.int64)})])
def test_another_checkpoint_is_refused(wrong: bytes) -> None:
    with pytest.raises(CheckpointError):
        fresh().load(wrong)


def test_a_sum_lives_in_memory_that_is_shared() -> None:
    length = tally.layout_of(SPEC).length
    fd = os.memfd_create("sum")
    try:
        os.ftruncate(fd, length)
        mine, theirs = (
            FixedPointSum(SPEC, mmap.mmap(fd, length), most_clients=9),
            FixedPointSum(SPEC, mmap.mmap(fd, length), most_clients=9),
        )
        mine.add(body(GOOD), 1.0)
        assert words(theirs) == oracle([GOOD])
    finally:
        os.close(fd)
    only = FixedPointSum(SPEC, memory().toreadonly(), most_clients=9)
    assert only.heard == 0
    with pytest.raises(ValueError, match="read-only"):
        only.add(body(GOOD), 1.0)
    with pytest.raises(ValueError, match="read-only"):
        mine.tensor("w")[0] = 1


@given(st.permutations(["a", "b", "empty", "z"]), st.lists(st.floats(-1e3, 1e3, width=32), min_size=9, max_size=9))
def test_neighbors_are_summed_where_the_spec_has_them(order: list[str], values: list[float]) -> None:
    sizes = {"a": 2, "b": 3, "empty": 0, "z": 4}
    spec = Contribution(scale=20, tensors=tuple(TensorSpec(name=name, shape=(sizes[name],)) for name in order))
    rest, parts = list(values), {}
    for name, size in sizes.items():
        parts[name], rest = rest[:size], rest[size:]
    total = FixedPointSum(spec, memory(spec), most_clients=9)
    for _ in range(2):  # the second one's header is known
        total.add(codec.write({name: np.array(part, np.float32) for name, part in parts.items()}), 3.0)
    for name, part in parts.items():
        expected = [2 * round(3 * Fraction(x) * 2**20) for x in part]
        assert total.tensor(name).tolist() == expected


@given(st.lists(numbers, min_size=1, max_size=4), st.lists(numbers, min_size=1, max_size=4))
def test_memory_that_is_used_again_knows_nothing_of_what_was_in_it(before: list[Numbers], after: list[Numbers]) -> None:
    open_tally, alone = OpenTally(SPEC, 4), fresh(8)
    for each in before:
        open_tally.sum.add(body(each), each[-1])
    open_tally.begin_anew(8)
    for each in after:
        open_tally.sum.add(body(each), each[-1])
        alone.add(body(each), each[-1])
    assert words(open_tally.sum) == words(alone)
    open_tally.close()
