"""The door: what a trainer hands over leaves bounded and noised, or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from freehold.errors import FreeholdError, ReleaseRefused, SpecMismatch, TensorsMalformed
from freehold.node.release import FixedPoint, released
from freehold.plan import Contribution, Privacy, TensorSpec
from freehold.wire import codec
from freehold.wire.codec import Bfloat16, Entry
from freehold.wire.local import Mapped, close, is_sealed, read, sealed
from freehold.wire.tally import FixedPointSum, layout_of
from tests.unit.node.test_noise import Fixed

CLIENT = Privacy(unit="client", max_norm=1.0, noise_multiplier=1.0)
NOTHING = Privacy()


def spec_of(tensors: Mapping[str, codec.Tensor], scale: int = 24) -> Contribution:
    return Contribution(
        scale=scale,
        tensors=tuple(
            TensorSpec(name=name, shape=t.bits.shape, dtype="bfloat16")
            if isinstance(t, Bfloat16)
            else TensorSpec(name=name, shape=t.shape, dtype=t.dtype.name)  # type: ignore[arg-type]
            for name, t in tensors.items()
        ),
    )


def out_of(body: bytes, spec: Contribution, privacy: Privacy, seed: int = 0) -> bytes:
    """What leaves."""
    fd = sealed(body, "departing")
    try:
        out = released(fd, spec, privacy, stream=lambda: Fixed(seed))
        assert is_sealed(out)
        found = read(out)
        if out != fd:
            close([out])
        return found
    finally:
        close([fd])


def numbers_of(body: bytes) -> NDArray[np.float64]:
    return np.concatenate([a.reshape(-1).astype(np.float64) for a in codec.arrays(body).values()] or [np.zeros(0)])


any_float = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 5e-324, 2.2e-308, 1.7976931348623157e308, -1.7976931348623157e308, 1e154, 1e-160]),
    st.floats(-1e-6, 1e-6),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(any_float, max_size=40), max_size=6),
    st.sampled_from(["float64", "float32", "float16"]),
    st.integers(4, 30),
    st.floats(1.0, 1000.0),
)
def test_the_norm_of_the_integers_is_bounded_exactly(lists: list[list[float]], dtype: str, scale: int, max_norm: float) -> None:
    """Whatever the numbers are: counted in whole numbers, which do not round."""
    limits = np.finfo(dtype)  # type: ignore[call-overload]
    tensors: dict[str, codec.Tensor] = {
        f"t{i}": np.clip(np.array(each, np.float64), limits.min, limits.max).astype(dtype) for i, each in enumerate(lists)
    }
    body = codec.write(tensors)
    spans = [Entry(e.dtype, (math.prod(e.shape),), e.begin, e.end) for e in codec.layout(body).values()]
    view = memoryview(body)
    fixed = FixedPoint.of(view, spans, 2.0**scale, max_norm)
    integers = [int(n) for span in spans for part in fixed.integers(view, span) for n in part]
    assert sum(n * n for n in integers) <= (Fraction(max_norm) * 2**scale) ** 2
    exact = [Fraction(float(n)) for t in tensors.values() for n in np.asarray(t)]
    limit = Fraction(max_norm) * 2**scale * (1 - Fraction(2) ** -20) - Fraction(math.sqrt(len(exact)) / 2 + 1)
    if limit > 0 and sum(n * n for n in exact) * 4**scale < limit**2:
        assert integers == [round(n * 2**scale) for n in exact], "what is small passes as it is"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("privacy", [CLIENT, NOTHING])
def test_what_is_not_finite_does_not_leave(bad: float, dtype: str, privacy: Privacy) -> None:
    tensors = {"a": np.zeros(40_000, dtype), "b": np.array([0.0, bad, 0.0], dtype)}
    with pytest.raises(TensorsMalformed):
        out_of(codec.write(tensors), spec_of(tensors), privacy)


def test_without_a_promise_the_bytes_are_the_same() -> None:
    tensors: dict[str, codec.Tensor] = {
        "w": np.array([[1.5, -0.0], [5e-324, 1e300]]),
        "n": np.array([3]),
        "b": Bfloat16(np.array([1], np.uint16)),
    }
    body = codec.write(tensors)
    assert out_of(body, spec_of(tensors), NOTHING) == body
    assert out_of(codec.write({}), spec_of({}), NOTHING) == codec.write({})


@pytest.mark.parametrize("privacy", [CLIENT, NOTHING])
def test_a_header_that_says_more_does_not_leave(privacy: Privacy) -> None:
    tensors = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
    spec, body = spec_of(tensors), codec.write(tensors)
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])

    def again(told: object, **dumped: object) -> bytes:
        text = json.dumps(told, **dumped).encode()  # type: ignore[arg-type]
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + body[8 + size :]

    swapped = {"a": {**header["a"], "data_offsets": [12, 20]}, "b": {**header["b"], "data_offsets": [0, 12]}}
    for other in (
        again({**header, "__metadata__": {"row": "63,1,145"}}, separators=(",", ":")),
        again(header),  # spaces
        again(dict(reversed(header.items())), separators=(",", ":")),
        again({name: dict(reversed(fields.items())) for name, fields in header.items()}, separators=(",", ":")),
        again(swapped, separators=(",", ":")),
    ):
        codec.check(other, spec)
        with pytest.raises(ReleaseRefused):
            out_of(other, spec, privacy)
    assert out_of(body, spec, NOTHING) == body == again(header, separators=(",", ":"))


def test_another_tensor_does_not_leave() -> None:
    tensors = {"a": np.zeros(2, np.float32)}
    for other in ({**tensors, "row 17": np.zeros(1, np.float32)}, {}, {"a": np.zeros(3, np.float32)}, {"a": np.zeros(2)}):
        with pytest.raises(SpecMismatch):
            out_of(codec.write(other), spec_of(tensors), CLIENT)
    for garbage in (b"", b"x" * 100, codec.write(tensors) + b"0"):
        with pytest.raises(FreeholdError):
            out_of(garbage, spec_of(tensors), CLIENT)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_noise_comes_on_top_of_what_is_clipped(dtype: str) -> None:
    """A contribution of norm a million becomes one of norm `max_norm`, and noise of the width that is promised."""
    count, norm = 60_000, 1e6 if dtype != "float16" else 1e4
    plain = np.full(count, norm / math.sqrt(count), np.float32)
    tensor = Bfloat16((plain.view(np.uint32) >> 16).astype(np.uint16)) if dtype == "bfloat16" else plain.astype(dtype)
    privacy = Privacy(unit="client", max_norm=50.0, noise_multiplier=0.02)
    body = codec.write({"w": tensor})
    out = out_of(body, spec_of({"w": tensor}), privacy)
    assert len(out) == len(body) and out[: len(out) - 2 * count] != b""
    numbers = numbers_of(out)
    assert numbers.mean() == pytest.approx(50 / math.sqrt(count), abs=4 / math.sqrt(count))
    assert numbers.std() == pytest.approx(1.0, rel=0.02)
    assert (numbers_of(out_of(body, spec_of({"w": tensor}), privacy, seed=1)) != numbers).mean() > 0.9


def test_what_travels_is_on_the_grid_that_is_summed() -> None:
    tensors = {"w": np.linspace(-0.1, 0.1, 5000)}
    body = out_of(codec.write(tensors), spec_of(tensors, 16), CLIENT)
    integers = numbers_of(body) * 2**16
    assert (integers == np.rint(integers)).all()
    spec = spec_of(tensors, 16)
    total = FixedPointSum(spec, memoryview(bytearray(layout_of(spec).length)), most_clients=4)
    total.add(body, 1.0)
    assert (total.tensor("w") == integers).all()


def test_the_mean_over_many_clients_is_not_biased() -> None:
    clients, truth = 400, np.array([0.3, -0.2, 0.0, 1e-3])
    tensors = {"w": truth, "metrics/loss": np.array(0.25)}
    total = np.zeros(5)
    for seed in range(clients):
        total += numbers_of(out_of(codec.write(tensors), spec_of(tensors), CLIENT, seed))
    assert np.abs(total / clients - numbers_of(codec.write(tensors))).max() < 4 / math.sqrt(clients)


def test_metrics_count_in_the_norm() -> None:
    """They are in one vector with the parameters; else a second channel would lie beside it."""
    quiet = Privacy(unit="client", max_norm=1.0, noise_multiplier=1e-9)
    tensors = {"w": np.array([3.0, 0.0]), "metrics/loss": np.array(4.0)}
    found = numbers_of(out_of(codec.write(tensors), spec_of(tensors), quiet))
    assert sorted(np.round(found, 5).tolist()) == [0.0, 0.6, 0.8]


def test_many_small_tensors_and_large_ones() -> None:
    tensors = {f"{i:04}": np.full(1 + i % 3, 1e-3, np.float32) for i in range(2000)} | {"big": np.zeros(100_000, np.float32)}
    out = out_of(codec.write(tensors), spec_of(tensors), CLIENT)
    with Mapped(fd := sealed(out, "out")) as view:
        codec.check(view, spec_of(tensors))
    close([fd])
    assert numbers_of(out).std() == pytest.approx(1.0, rel=0.02)
