import numpy as np
import pytest

from freehold.data import from_arrays
from freehold.errors import BadValue, DataError, FreeholdError, LabelError, SplitOverlap, Unreadable

X = np.arange(24.0).reshape(12, 2)
Y = np.arange(12) % 3
SITES = ["a", "b"] * 6


def test_arrays_become_a_population() -> None:
    population = from_arrays(X, Y, SITES, classes=("low", "mid", "high"))
    assert population.classes == ("low", "mid", "high") and population.target.tolist() == Y.tolist()
    assert dict(population.sizes) == {"a": 6, "b": 6} and population.schema is None


def test_labels_of_any_kind_are_put_in_order() -> None:
    assert from_arrays(X, Y + 1, SITES).classes == ("1", "2", "3")
    words = from_arrays(X, np.array(["c", "a", "b"])[Y], SITES)
    assert words.classes == ("a", "b", "c") and words.target.tolist() == [2, 0, 1] * 4
    assert from_arrays(X, Y == 1, SITES).classes == ("false", "true")
    assert from_arrays(X, Y.astype(float)[:, None], SITES).classes == ("0", "1", "2")
    named = from_arrays(X, np.array(["low", "high", "mid"])[Y], SITES, classes=("low", "mid", "high"))
    assert named.target.tolist() == [0, 2, 1] * 4


def test_many_whole_numbers_without_a_gap_are_classes_if_there_is_enough_of_each() -> None:
    x = np.arange(620.0)[:, None]
    assert len(from_arrays(x, np.arange(620) % 62, ["a"] * 620).classes) == 62
    assert from_arrays(x, np.arange(620), ["a"] * 620).classes == ()
    assert from_arrays(x, 3 * (np.arange(620) % 62), ["a"] * 620).classes == ()
    assert from_arrays(X, Y + 0.5, SITES).classes == ()
    assert from_arrays(X, Y, SITES, problem="regression").target.dtype == np.float64


def test_clients_may_be_numbers() -> None:
    assert from_arrays(X, Y, np.arange(12) // 6 + 9).clients == ("9", "10")


@pytest.mark.parametrize(
    ("x", "y", "client", "more", "error", "said"),
    [
        (X.astype(str), Y, SITES, {}, BadValue, "not of numbers"),
        (X[:, 0], Y, SITES, {}, DataError, r"shape \[12\]"),
        (X[:0], Y[:0], [], {}, Unreadable, "no rows"),
        (np.where(X == 5, np.nan, X), Y, SITES, {}, BadValue, r"1 cells of x .* row 3, column 2, is missing"),
        (np.where(X == 5, np.inf, X), Y, SITES, {}, BadValue, "is infinite"),
        (X, Y[:5], SITES, {}, DataError, "y has shape"),
        (X, Y, SITES[:5], {}, DataError, "client has shape"),
        (X, [None, *Y[1:]], SITES, {}, BadValue, "y is missing in 1 of 12 rows, first in row 1"),
        (X, Y, SITES, {"classes": ("low", "mid")}, LabelError, "'2' in 4 of 12 rows; expected 'low', 'mid'"),
        (X, Y * 0, SITES, {}, LabelError, "'0' in all 12 rows"),
        (X, Y, SITES, {"split": ["later"] * 12}, BadValue, "split holds 'later'"),
        (X * 0, Y * 0 + [0, 1] * 6, SITES, {"split": ["train", "train", "test"] * 4}, SplitOverlap, "2 examples"),
        (X, np.where(Y == 1, np.inf, Y + 0.5), SITES, {"problem": "regression"}, BadValue, "not a finite number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    x: object, y: object, client: object, more: dict[str, object], error: type[FreeholdError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        from_arrays(x, y, client, **more)  # type: ignore[arg-type]
    assert caught.value.hint
