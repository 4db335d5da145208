"""What is tuned, where, and which settings are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core import Rate, Task, algorithm_entry, algorithm_names, checked, entry_of
from freehold.errors import UsageError
from freehold.study.space import COUNT, RATE, STRENGTH, space_of, tried

NAMES = st.sampled_from(algorithm_names())


@given(NAMES, st.integers(1, 40), st.integers(0, 2**31))
def test_every_trial_is_allowed_and_the_first_is_the_defaults(name: str, trials: int, seed: int) -> None:
    entry = algorithm_entry(name)
    defaults = {"lr": 0.05}
    space = space_of(entry, defaults)
    found = tried(name, space, defaults, trials=trials, seed=seed)
    assert len(found) == trials
    assert found[0] == defaults
    for settings in found[1:]:
        assert settings.keys() == defaults.keys() | {one.name for one in space}
        assert checked(name, entry.hyperparameters, settings) == settings
        for one in space:
            assert one.low <= settings[one.name] <= one.high
    assert found == tried(name, space, defaults, trials=trials, seed=seed)


@given(NAMES, st.integers(2, 20), st.integers(1, 20))
def test_more_trials_are_more_of_the_same(name: str, trials: int, more: int) -> None:
    space = space_of(algorithm_entry(name), {})
    assert tried(name, space, {}, trials=trials + more, seed=1)[:trials] == tried(name, space, {}, trials=trials, seed=1)


@given(st.integers(8, 64), st.integers(0, 1000))
def test_trials_are_spread_over_the_whole_range(trials: int, seed: int) -> None:
    space = space_of(algorithm_entry("fedavg"), {"lr": 0.1})
    rates = [float(each["lr"]) for each in tried("fedavg", space, {"lr": 0.1}, trials=trials, seed=seed)[1:]]
    assert any(rate < 0.1 / RATE**0.5 for rate in rates)
    assert any(rate > 0.1 * RATE**0.5 for rate in rates)


def test_another_seed_or_algorithm_tries_other_points() -> None:
    space = space_of(algorithm_entry("fedavg"), {})
    one = tried("fedavg", space, {}, trials=5, seed=0)
    assert one[1:] != tried("fedavg", space, {}, trials=5, seed=1)[1:]
    assert one[1:] != tried("local", space, {}, trials=5, seed=0)[1:]


def test_ranges_follow_from_the_types() -> None:
    space = {one.name: one for one in space_of(algorithm_entry("ditto"), {"lr": 0.05, "lam": 2.0})}
    assert (space["lr"].low, space["lr"].high, space["lr"].log) == (pytest.approx(0.05 / RATE, rel=1e-3), 0.05 * RATE, True)
    assert (space["lam"].low, space["lam"].high, space["lam"].log) == (2 / STRENGTH, 2 * STRENGTH, True)
    mixed = {one.name: one for one in space_of(algorithm_entry("apfl"), {})}
    assert (mixed["alpha"].low, mixed["alpha"].high, mixed["alpha"].log) == (0, 1, False)
    counted = {one.name: one for one in space_of(algorithm_entry("ifca"), {"clusters": 3})}
    assert (counted["clusters"].low, counted["clusters"].high, counted["clusters"].whole) == (1, 3 * COUNT, True)


def test_a_weight_whose_default_is_nothing_is_looked_for_around_one() -> None:
    lam = next(one for one in space_of(algorithm_entry("ditto"), {"lam": 0.0}) if one.name == "lam")
    assert (lam.low, lam.high) == (1 / STRENGTH, STRENGTH)


def test_an_optional_rate_is_looked_for_around_the_learning_rate_and_choices_by_name_stay() -> None:
    tune_lr = next(one for one in space_of(algorithm_entry("fedavg-finetuned"), {"lr": 0.2}) if one.name == "tune_lr")
    assert tune_lr.high == pytest.approx(0.2 * RATE)
    assert [one.name for one in space_of(algorithm_entry("local"), {"optimizer": "adam"})] == ["lr"]


def test_what_is_held_is_not_tuned_and_nothing_left_is_an_error() -> None:
    assert [one.name for one in space_of(algorithm_entry("ditto"), {}, held=("lam",))] == ["lr"]
    with pytest.raises(UsageError, match="FedAvg has no number to tune"):
        tried("FedAvg", space_of(algorithm_entry("fedavg"), {}, held=("lr",)), {}, trials=3, seed=0)
    with pytest.raises(UsageError, match="0 trials"):
        tried("FedAvg", space_of(algorithm_entry("fedavg"), {}), {}, trials=0, seed=0)


def test_a_number_of_which_nothing_is_known_is_left_alone() -> None:
    def strange(task: Task, *, lr: Rate = 0.1, shift: float = 0.0, on: bool = True) -> None:
        """None."""

    assert [one.name for one in space_of(entry_of("strange", strange), {})] == ["lr"]  # type: ignore[arg-type]
