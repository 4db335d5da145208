from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.data import Column, Population, Prepared, Schema, SplitRule, Target, digits, heart, partition, prepare, split
from freehold.data.arrays import from_arrays
from freehold.data.moments import Statistics
from freehold.errors import BadValue, TooFewExamples
from tests.unit.data.populations import labeled

SCHEMA = Schema(
    columns=(
        Column(name="age", kind="number", missing=("",)),
        Column(name="male", kind="flag", missing=("",)),
        Column(name="kind", kind="category", categories=("x", "y"), missing=("",)),
    ),
    target=Target(name="t", kind="class", classes=("no", "yes")),
)
CELL = st.tuples(
    st.one_of(st.none(), st.floats(-1e3, 1e3)), st.sampled_from([None, 0.0, 1.0]), st.sampled_from([None, "x", "y", "z"])
)
ROWS = st.lists(CELL, min_size=4, max_size=12)


def table(**clients: list[tuple[float | None, float | None, str | None]]) -> Population:
    rows = [cell for cells in clients.values() for cell in cells]
    frame = pl.DataFrame(rows, schema={"age": pl.Float64, "male": pl.Float32, "kind": pl.String}, orient="row")
    names = np.repeat(list(clients), [len(cells) for cells in clients.values()])
    target = np.arange(len(rows)) % 2
    return Population(name="t", features=frame, target=target, client=names, schema=SCHEMA, classes=("no", "yes"))


def prepared(population: Population, statistics: Statistics = "client") -> Prepared:
    return prepare(population, split(population, SplitRule(), seed=0), min_examples=1, kind="silos", statistics=statistics)


@settings(max_examples=40, deadline=None)
@given(own=ROWS, others=ROWS, changed=ROWS)
def test_a_clients_features_need_no_other_clients_rows(own: list, others: list, changed: list) -> None:
    before, after = prepared(table(a=own, b=others)), prepared(table(a=own, b=changed))
    assert torch.equal(before.x[: len(own)], after.x[: len(own)])
    assert before.feature_names == after.feature_names


@settings(max_examples=40, deadline=None)
@given(a=ROWS, b=ROWS)
def test_federated_sums_equal_pooled_statistics(a: list, b: list) -> None:
    population = table(a=a, b=b)
    made = prepared(population, "federated")
    assert isinstance(population.features, pl.DataFrame)
    ages = population.features["age"].to_numpy()
    train = torch.cat([rows["train"] for rows in made.rows.values()]).numpy()
    known = ages[train][~np.isnan(ages[train])]
    if not len(known) or known.std() < 1e-5:
        return
    expected = np.nan_to_num((ages - known.mean()) / known.std())
    np.testing.assert_allclose(made.x[:, 0].numpy(), expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, statistics=st.sampled_from(["client", "federated", "none"]), other=CELL)
def test_test_rows_never_influence_statistics(rows: list, statistics: Statistics, other: tuple) -> None:
    population = table(a=rows, b=rows)
    splits = split(population, SplitRule(), seed=0)
    test = int(splits["a"]["test"][0])
    changed = [*rows]
    changed[test] = other
    after = table(a=changed, b=rows)
    one, two = (prepare(each, splits, min_examples=1, kind="silos", statistics=statistics) for each in (population, after))
    kept = [row for row in range(2 * len(rows)) if row != test]
    assert torch.equal(one.x[kept], two.x[kept])


def test_features_are_standardized_one_hot_and_masked() -> None:
    population = table(a=[(1, 1, "x"), (3, None, None), (None, 0, "z"), (5, 1, "y")])
    splits = {"a": {"train": np.array([0, 1, 2]), "validation": np.array([], dtype=np.int64), "test": np.array([3])}}
    made = prepare(population, splits, min_examples=1, kind="silos")
    assert made.feature_names == ("age", "age missing", "male", "male missing", "kind=x", "kind=y", "kind missing")
    assert made.x.tolist() == [
        [-1, 0, 1, 0, 1, 0, 0],
        [1, 0, 0.5, 1, 0, 0, 1],
        [0, 1, 0, 0, 0, 0, 0],
        [3, 0, 1, 0, 0, 1, 0],
    ]
    assert made.x.dtype == torch.float32 and made.y.dtype == torch.int64


def test_a_column_that_a_client_does_not_know_is_zero_and_said() -> None:
    made = prepared(table(a=[(None, 1, "x")] * 4, b=[(float(i), 1, "x") for i in range(4)]))
    assert torch.all(made.x[:4, 0] == 0) and torch.all(made.x[:4, 1] == 1)
    assert any(warning.startswith("a: age unknown in every train row") for warning in made.warnings)


def test_a_constant_column_is_zero_also_where_test_rows_differ() -> None:
    population = table(a=[(1e6, 1, "x"), (1e6, 1, "x"), (7, 1, "x")])
    splits = {"a": {"train": np.array([0, 1]), "validation": np.array([], dtype=np.int64), "test": np.array([2])}}
    assert prepare(population, splits, min_examples=1, kind="silos").x[:, 0].tolist() == [0, 0, 0]


def test_time_stamps_keep_their_digits_in_federated_sums() -> None:
    stamps = [(1.7e9 + second, 1.0, "x") for second in range(12)]
    made = prepared(table(a=stamps[:6], b=stamps[6:]), "federated")
    train = torch.cat([rows["train"] for rows in made.rows.values()])
    assert made.x[train, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_none_leaves_numbers_as_they_are() -> None:
    made = prepared(table(a=[(float(i), 1, "x") for i in range(6)]), "none")
    assert made.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_heart_becomes_35_features() -> None:
    made = prepared(heart())
    assert made.x.shape == (920, 35) and bool(torch.isfinite(made.x).all())
    train = made.x[made.rows["Hungary"]["train"], made.feature_names.index("thalach")]
    known = train[made.x[made.rows["Hungary"]["train"], made.feature_names.index("thalach missing")] == 0]
    assert abs(known.mean().item()) < 1e-5 and abs(known.std(correction=0).item() - 1) < 1e-5


def test_arrays_keep_their_shape() -> None:
    population = partition(digits(), "iid", clients=3, seed=0)
    assert isinstance(population.features, np.ndarray)
    images = replace(population, features=population.features.reshape(-1, 1, 8, 8))
    assert torch.equal(prepared(images, "none").x, torch.from_numpy(population.features).reshape(-1, 1, 8, 8))
    assert torch.equal(prepared(images).x.reshape(-1, 64), prepared(population).x)


def test_arrays_with_missing_numbers_are_refused() -> None:
    with pytest.raises(BadValue, match="NaN"):
        prepared(replace(labeled(["a"] * 4, [0, 1, 0, 1]), features=np.full((4, 2), np.nan)))


def test_a_silo_below_min_examples_is_an_error_that_names_it() -> None:
    population = labeled(["a"] * 9 + ["b"] * 3, [0, 1, 0] * 4)
    with pytest.raises(TooFewExamples, match=r"fewer than 5 examples: b \(3\)"):
        prepare(population, split(population, SplitRule(), seed=0), min_examples=5, kind="silos")


def test_devices_below_min_examples_are_skipped_and_counted() -> None:
    population = labeled(["a"] * 9 + ["b"] * 3, [0, 1, 0] * 4)
    made = prepare(population, split(population, SplitRule(), seed=0), min_examples=5, kind="devices")
    assert made.clients == ("a",) and made.skipped == {"b": 3} and set(made.rows) == {"a"}
    assert torch.all(made.x[9:] == 0)


def test_skipped_devices_give_nothing_to_federated_sums() -> None:
    population = labeled(["a"] * 9 + ["b"] * 3, [0, 1, 0] * 4)
    assert isinstance(population.features, np.ndarray)
    loud = replace(population, features=np.vstack([population.features[:9], population.features[9:] + 1e6]))
    one, two = (
        prepare(each, split(each, SplitRule(), seed=0), min_examples=5, kind="devices", statistics="federated")
        for each in (population, loud)
    )
    assert torch.equal(one.x, two.x)


def test_no_device_left_is_an_error() -> None:
    population = labeled(["a", "b"], [0, 1])
    with pytest.raises(TooFewExamples, match="None of 2 clients has 5 examples; the largest has 1"):
        prepare(population, split(population, SplitRule(), seed=0), min_examples=5, kind="devices")


def test_a_client_with_one_class_is_a_warning() -> None:
    population = labeled(["a"] * 6 + ["b"] * 6, [1] * 6 + [0, 1] * 3)
    assert prepared(population).warnings == ("a: all 6 examples are '1'.",)


def test_a_client_without_test_rows_of_its_own_is_a_warning() -> None:
    said = np.array(["train"] * 6 + ["test"] * 3 + ["train"] * 6)
    population = labeled(["a"] * 9 + ["b"] * 6, [0, 1, 0] * 5, split=said)
    assert any("b: has no test rows of its own" in warning for warning in prepared(population).warnings)


def test_a_regression_target_can_be_standardized_and_taken_back() -> None:
    target = np.array([100.0, 200, 300, 400, 1000, 2000, 3000, 4000])
    frame = pl.DataFrame({"age": target, "male": [0.0, 1.0] * 4, "kind": ["x"] * 8})
    schema = replace(SCHEMA, target=Target(name="t", kind="number"))
    population = Population(name="r", features=frame, target=target, client=np.repeat(["a", "b"], 4), schema=schema, classes=())
    splits = split(population, SplitRule(), seed=0)
    plain = prepare(population, splits, min_examples=1, kind="silos")
    scaled = prepare(population, splits, min_examples=1, kind="silos", scale_target=True)
    assert plain.y.dtype == torch.float32 and plain.y.tolist() == target.tolist() and not plain.target_scale
    for client, (mean, deviation) in scaled.target_scale.items():
        rows = torch.from_numpy(population.rows[client])
        torch.testing.assert_close(scaled.y[rows] * deviation + mean, plain.y[rows])


def test_copies_on_both_sides_of_a_split_and_at_two_clients_are_counted() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 2))
    values[1:4] = values[0]  # four alike at a
    values[30] = values[10]  # one of b's is one of a's
    target = np.arange(40) % 2
    target[:4], target[30] = 1, target[10]
    client = np.array(["a"] * 20 + ["b"] * 20)
    population = from_arrays(values, target, client, name="t")
    rest = np.arange(4, 20)
    splits = {
        "a": {"train": np.append(rest, 0), "validation": np.array([1]), "test": np.array([2, 3])},
        "b": {"train": np.arange(20, 34), "validation": np.arange(34, 37), "test": np.arange(37, 40)},
    }
    told = prepare(population, splits, min_examples=1, kind="silos").warnings
    assert any(each.startswith("3 validation or test examples are alike") and "most at a: 3" in each for each in told)
    assert any(each.startswith("2 examples are alike in every column to one of another client") for each in told)
    target[1:4] = 0  # another target is another example
    told = prepare(from_arrays(values, target, client, name="t"), splits, min_examples=1, kind="silos").warnings
    assert not any("same client" in each for each in told)
