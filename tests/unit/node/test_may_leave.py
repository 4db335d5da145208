"""Measures at the guard's door: known sums that can be true, and none over fewer than five."""

from __future__ import annotations

import math

import pytest

from freehold.errors import ReleaseRefused
from freehold.node.errands import OutgoingMeasures
from freehold.node.measures import MOST, known_choice, may_leave, measures_body
from freehold.wire.messages import Measured

GOOD = {"count": 20.0, "correct": 15.0, "loss": 7.25, "differing": 3.0}
CLASSES = {"count_by_class/0": 12.0, "count_by_class/1": 8.0, "correct_by_class/0": 9.0, "correct_by_class/1": 6.0}


def told(sums: dict[str, float], examples: int = 20) -> dict[str, Measured]:
    return {"test": Measured(examples=examples, sums=sums)}


def test_what_is_honest_leaves_as_it_is() -> None:
    for sums in (GOOD, GOOD | CLASSES, {"count": 20.0, "loss": -3.0, "squared_error": 1.0, "target": -9.0}, {}):
        assert may_leave(told(sums)) == told(sums)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patient 17": 1.0},
        {"age/63": 1.0},
        {"count_by_class/01": 5.0},
        {"count_by_class/63.5": 5.0},
        {"loss": math.nan},
        {"loss": math.inf},
        {"correct": 15.5},
        {"correct": 21.0},
        {"correct": -1.0},
        {"count": 19.0},
        {"differing": 0.125},
        {"count_by_class/0": 15.0},
        {"correct_by_class/1": 9.0},
        {"correct_by_class/2": 0.0},
    ],
)
def test_what_is_not_known_or_cannot_be_true_does_not_leave(wrong: dict[str, float]) -> None:
    with pytest.raises(ReleaseRefused):
        may_leave(told(GOOD | CLASSES | wrong))


def test_splits_and_choices_are_known_ones() -> None:
    with pytest.raises(ReleaseRefused):
        may_leave({"row 17": Measured(examples=20, sums=GOOD)})
    with pytest.raises(ReleaseRefused):
        known_choice("63,1,145")
    assert [known_choice(each) for each in ("", "local", "shared", "personal")] == ["", "local", "shared", "personal"]


def test_what_is_over_fewer_than_five_is_left_out() -> None:
    assert may_leave(told({"count": 4.0, "loss": 1.0}, examples=4)) == told({}, examples=4)
    few = CLASSES | {"count_by_class/0": 4.0, "correct_by_class/0": 4.0}
    assert may_leave(told(GOOD | few)) == told(GOOD)
    only_right = {name: value for name, value in CLASSES.items() if name.startswith("count")}
    assert may_leave(told(GOOD | only_right)) == told(GOOD | only_right)


def test_sums_are_cut_to_what_is_sane() -> None:
    assert may_leave(told(GOOD | {"loss": 1e300}))["test"].sums["loss"] == MOST
    assert may_leave(told({"count": 20.0, "target": -1e300}))["test"].sums["target"] == -MOST


def test_measures_that_no_message_can_carry_are_refused() -> None:
    """A guard hands them on in one message, which would otherwise end it."""
    many = {f"count_by_class/{k}": 5.0 for k in range(5000)}
    found = OutgoingMeasures(splits=may_leave(told(many, 25_000)))
    with pytest.raises(ReleaseRefused, match="bytes"):
        measures_body(found, run="0123456789abcdef-0", round=0)
