from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from freehold.report.intervals import (
    Paired,
    example_variance,
    examples_tested,
    fixed_split,
    repeated_splits,
    verdict,
)

Floats = npt.NDArray[np.float64]


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    differences = [0.01, 0.03, 0.02, 0.06, 0.03]
    variance = float(np.var(differences, ddof=1)) * (1 / 5 + 0.25 / 0.75)
    half = 2.7764451 * math.sqrt(variance)  # the 97.5 % quantile of t with 4 degrees of freedom
    found = repeated_splits(differences, ratio=0.25 / 0.75)
    assert found.low == pytest.approx(0.03 - half, abs=1e-8)
    assert found.high == pytest.approx(0.03 + half, abs=1e-8)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "gain"),
        (-0.2, -0.01, "loss"),
        (-0.1, 0.1, "cannot tell"),
        (0.0, 0.1, "cannot tell"),
        (None, None, "cannot tell"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float | None, high: float | None, expected: str) -> None:
    assert verdict(low, high) == expected


@pytest.mark.parametrize("differences", [[0.5], [0.5, 0.5], [0.5, math.nan, 0.5]])
def test_fewer_than_three_seeds_cannot_tell_and_have_no_interval(differences: list[float]) -> None:
    for found in (
        repeated_splits(differences, ratio=0.3, least_variance=1e-9),
        fixed_split(differences, variance=1e-9, examples=999),
    ):
        assert (found.difference, found.low, found.high, found.verdict) == (0.5, None, None, "cannot tell")
        assert "too few" in found.reason


def test_nothing_to_compare_cannot_tell() -> None:
    assert repeated_splits([math.nan], ratio=0.3) == Paired(difference=None, reason="there is nothing to compare")


def test_equal_differences_in_all_splits_cannot_tell_if_nothing_else_is_known() -> None:
    found = repeated_splits([0.25] * 10, ratio=0.3)
    assert (found.low, found.verdict) == (None, "cannot tell")
    assert "same difference" in found.reason


def test_no_difference_in_any_split_cannot_tell() -> None:
    variance = example_variance(0.8, 0.8, per_example=0.0, examples=100, binary=True)
    assert variance is not None and variance > 0
    assert repeated_splits([0.0] * 10, ratio=0.3, least_variance=variance).verdict == "cannot tell"


def test_one_more_right_answer_in_every_split_of_a_tiny_client_cannot_tell() -> None:
    variance = example_variance(9 / 16, 8 / 16, per_example=0.06, examples=46, binary=True)
    assert variance is not None
    assert repeated_splits([1 / 16] * 10, ratio=0.4, least_variance=variance).verdict == "cannot tell"


def test_all_wrong_to_all_right_on_a_few_examples_is_not_certain() -> None:
    variance = example_variance(1.0, 0.0, per_example=0.0, examples=3, binary=True)
    assert variance is not None and variance > 0.01


def test_one_fixed_test_set_says_nothing_until_its_examples_are_accounted_for() -> None:
    assert fixed_split([0.2, 0.21, 0.2], variance=None, examples=100).verdict == "cannot tell"
    assert fixed_split([0.2, 0.21, 0.2], variance=0.15**2, examples=100).verdict == "cannot tell"
    assert fixed_split([0.2, 0.21, 0.2], variance=0.05**2, examples=100).verdict == "gain"


def test_without_measurement_the_variance_is_the_largest_that_two_shares_allow() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        cells = rng.dirichlet([1.0] * 4)  # both right, only first, only second, none
        first, second = cells[0] + cells[1], cells[0] + cells[2]
        true = (cells[1] + cells[2] - (first - second) ** 2) / 1e6
        found = example_variance(first, second, per_example=None, examples=1e6, binary=True)
        assert found is not None and found >= true * (1 - 1e-3)


def test_what_is_not_a_share_of_right_answers_needs_measuring() -> None:
    assert example_variance(3.0, 2.0, per_example=None, examples=50, binary=False) is None
    assert example_variance(3.0, 2.0, per_example=4.0, examples=50, binary=False) == pytest.approx(4 / 50)


def test_examples_tested_grow_with_the_splits() -> None:
    assert examples_tested(examples=100, test=25, splits=1) == pytest.approx(25)
    assert examples_tested(examples=100, test=25, splits=10) == pytest.approx(100, abs=6)
    assert examples_tested(examples=0, test=0, splits=3) == 0


# ---- Simulation: real repeated splits of a finite data set, on which two classifiers are trained and tested.


def centroid(feature: Floats, label: Floats, train: npt.NDArray[np.int64]) -> Floats:
    """Right or wrong per example, of the threshold half-way between the two classes' means."""
    above, below = feature[train][label[train] == 1].mean(), feature[train][label[train] == 0].mean()
    sign = 1 if above >= below else -1
    return ((sign * (feature - (above + below) / 2) > 0) == (label == 1)).astype(float)


def verdicts(
    *, lift: float, examples: int, splits: int, measured: bool, stratified: bool, constant: bool = False, repeats: int = 300
) -> dict[str, float]:
    """The share of each verdict. Features are equally good if `lift` is 0; `constant`: one classifier always says 1, the
    other always 0, equally good in expectation, and perfectly at odds."""
    rng = np.random.default_rng(examples + splits)
    counts = {"gain": 0, "loss": 0, "cannot tell": 0}
    for _ in range(repeats):
        label = (rng.random(examples) < 0.5).astype(float)
        side = 2 * label - 1
        strong, weak = rng.normal(size=examples) + (1 + lift) * side, rng.normal(size=examples) + side
        differences, variances, shares = [], [], []
        for _ in range(splits):
            order = rng.permutation(examples)
            groups = [order[label[order] == kind] for kind in (0, 1)] if stratified else [order]
            test = np.concatenate([group[: round(0.25 * len(group))] for group in groups])
            train = np.concatenate([group[round(0.40 * len(group)) :] for group in groups])
            first = label if constant else centroid(strong, label, train)
            second = 1 - label if constant else centroid(weak, label, train)
            gap = first[test] - second[test]
            differences.append(float(gap.mean()))
            variances.append(float(gap.var(ddof=1)))
            shares.append((float(first[test].mean()), float(second[test].mean())))
        one, two = np.mean(shares, axis=0)
        least = example_variance(
            float(one),
            float(two),
            per_example=float(np.mean(variances)) if measured else None,
            examples=examples_tested(examples=examples, test=round(0.25 * examples), splits=splits),
            binary=True,
        )
        counts[repeated_splits(differences, ratio=0.25 / 0.60, least_variance=least or 0.0).verdict] += 1
    return {name: count / repeats for name, count in counts.items()}


NOISE = 2.6 * math.sqrt(0.05 * 0.95 / 300)  # 99 % of the simulations of a 5 % rate stay below 0.05 + this


@pytest.mark.parametrize("examples", [46, 200])
@pytest.mark.parametrize("splits", [3, 10])
@pytest.mark.parametrize("measured", [True, False])
def test_without_a_difference_false_alarms_are_rare(examples: int, splits: int, measured: bool) -> None:
    found = verdicts(lift=0, examples=examples, splits=splits, measured=measured, stratified=True)
    assert found["gain"] + found["loss"] <= 0.05 + NOISE


@pytest.mark.parametrize("stratified", [True, False])
def test_stratified_splits_do_not_hide_the_chance_in_the_label_mix(stratified: bool) -> None:
    found = verdicts(lift=0, examples=120, splits=10, measured=False, stratified=stratified, constant=True)
    assert found["gain"] + found["loss"] <= 0.05 + NOISE


def test_the_plain_interval_would_raise_many_false_alarms() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(200):
        gap = rng.choice([-1.0, 0.0, 1.0], size=120, p=[0.15, 0.7, 0.15])
        differences = [float(gap[rng.permutation(120)[:30]].mean()) for _ in range(10)]
        alarms += repeated_splits(differences, ratio=0.0).verdict != "cannot tell"
    assert alarms / 200 > 0.2


def test_a_large_gain_is_found() -> None:
    found = verdicts(lift=1.5, examples=300, splits=10, measured=True, stratified=True, repeats=100)
    assert found["gain"] > 0.95 and found["loss"] == 0


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("examples", [16, 104])
def test_on_one_fixed_test_set_false_alarms_are_rare(examples: int, measured: bool) -> None:
    rng = np.random.default_rng(9)
    alarms = 0
    for _ in range(600):
        hard = rng.random(examples)  # how hard an example is, for both
        means, gaps = [], []
        for _ in range(5):
            right = (rng.random((2, examples)) < 0.5 + 0.45 * hard).astype(float)
            means.append(right.mean(axis=1))
            gaps.append(right[0] - right[1])
        first, second = np.mean(means, axis=0)
        per_example = float(np.mean([gap.var(ddof=1) for gap in gaps])) if measured else None
        variance = example_variance(float(first), float(second), per_example=per_example, examples=examples, binary=True)
        alarms += fixed_split([float(g.mean()) for g in gaps], variance=variance, examples=examples).verdict != "cannot tell"
    assert alarms / 600 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 600)
