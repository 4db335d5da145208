"""The audit of one run: its figures against a second computation, and attacks that stay below what is claimed, or do not."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binom

from benchmarks.audit import MEMBERSHIP, SUCCESS, inversion, records, run
from benchmarks.table import tables
from freehold.privacy.audit import Guesses, least_epsilon, p_value


def as_published(canaries: int, made: int, right: int, epsilon: float, delta: float) -> float:
    """The program in the paper's appendix D, with scipy."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    below, alpha = 0.0, 0.0
    for i in range(1, right + 1):
        below += binom.pmf(right - i, made, accuracy)
        if below > i * alpha:
            alpha = below / i
    return float(min(binom.sf(right - 1, made, accuracy) + alpha * delta * 2 * canaries, 1.0))


@pytest.mark.parametrize("guesses", [Guesses(1000, 300, 260), Guesses(100, 50, 40), Guesses(64, 64, 64), Guesses(10, 3, 0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.01])
def test_p_values_are_those_of_the_published_program(guesses: Guesses, epsilon: float, delta: float) -> None:
    assert p_value(guesses, epsilon, delta) == pytest.approx(as_published(*guesses, epsilon, delta), rel=1e-9, abs=1e-300)


def test_bounds_are_where_the_p_value_crosses_and_grow_with_what_is_right() -> None:
    bounds = [least_epsilon(Guesses(1000, 200, right), 1e-5) for right in (100, 130, 160, 190, 200)]
    assert bounds[0] == 0.0 and bounds == sorted(bounds) and bounds[-1] == pytest.approx(4.166, abs=2e-3)
    assert p_value(Guesses(1000, 200, 160), bounds[2], 1e-5) == pytest.approx(0.05, rel=1e-4)
    assert least_epsilon(Guesses(1000, 200, 160), 1e-5, confidence=0.999) < bounds[2]
    assert least_epsilon(Guesses(1000, 200, 200), 1e-2) < bounds[-1], "a larger delta explains more"


@pytest.mark.parametrize("guesses", [Guesses(10, 0, 0), Guesses(10, 11, 0), Guesses(10, 5, 6), Guesses(10, 5, -1)])
def test_what_no_attack_could_have_guessed_is_refused(guesses: Guesses) -> None:
    with pytest.raises(ValueError, match="no such guesses"):
        p_value(guesses, 1.0, 0.0)


@pytest.mark.parametrize("kind", ["client", "record"])
def test_an_attack_shows_less_than_is_claimed(kind: str) -> None:
    """And something: an attack that saw nothing would stay below any claim."""
    found = MEMBERSHIP[kind](1000, 0)
    assert 0.2 < found.shown <= found.claim < 4


@pytest.mark.parametrize("kind", ["client, a tenth of the noise", "record, a tenth of the noise"])
def test_too_little_noise_is_shown_to_be_too_little(kind: str) -> None:
    found = MEMBERSHIP[kind](1000, 0)
    assert found.shown > found.claim


@pytest.mark.parametrize("kind", ["no noise", "record, no noise"])
def test_without_noise_every_guess_is_right(kind: str) -> None:
    found = MEMBERSHIP[kind](1000, 0)
    assert found.guesses.right == found.guesses.made and found.claim == math.inf and found.as_row()["claimed_epsilon"] is None


def test_records_are_read_off_updates_without_noise_and_not_off_those_with_noise() -> None:
    """Real ones: exactly where an update rests on one of them, and of two together closely."""
    data = records()
    plain = inversion(data, "none", examples=10, batches=1, steps=600, starts=1)
    assert plain["one_example_read"] == 1.0 and plain["one_example_error"] < 1e-3 and plain["batch_error"] < SUCCESS
    for kind in ("client", "record"):
        found = inversion(data, kind, examples=10, batches=1, steps=50, starts=1)
        assert found["one_example_read"] == 0.0
        assert min(found["one_example_error"], found["batch_error"]) > 0.9, "no better than the mean of all records"


def test_the_benchmark_says_all_of_it() -> None:
    found = run(canaries=20, seeds=1, examples=2, batches=1, steps=2)
    assert set(found["membership"]) == set(MEMBERSHIP) and set(found["inversion"]) == {"none", "client", "record"}
    assert "a tenth of the noise" in tables("audit", found)
