from dataclasses import replace

import numpy as np
import polars as pl

from freehold.data import Column, Finding, Population, Schema, Target, check, digits, heart, partition
from tests.unit.data.populations import labeled

N = 60


def one(
    column: Column, values: list[object], *, target: np.ndarray | None = None, clients: int = 1, **more: object
) -> Population:
    kind = pl.String if column.kind == "category" else pl.Float32
    rng = np.random.default_rng(0)
    return Population(
        name="t",
        features=pl.DataFrame(
            {column.name: pl.Series(values, dtype=kind), "noise": pl.Series(rng.normal(size=len(values)), dtype=pl.Float32)}
        ),
        target=rng.integers(0, 2, len(values)) if target is None else target,
        client=np.array([f"c{row % clients}" for row in range(len(values))]),
        schema=Schema(
            columns=(column, Column(name="noise", kind="number")), target=Target(name="y", kind="class", classes=("no", "yes"))
        ),
        classes=("no", "yes"),
    )


def texts(population: Population, column: str | None = None) -> list[str]:
    return [finding.text for finding in check(population) if column is None or finding.column == column]


def spread(low: float, high: float, count: int = N) -> list[float]:
    return np.random.default_rng(1).uniform(low, high, count).tolist()


def test_heart_says_what_the_hospitals_did_not_measure() -> None:
    findings = check(heart())
    assert (
        Finding(
            client="Switzerland",
            column="chol",
            level="warning",
            text="chol = 0 in 123 of 123 rows: missing, coded 0, as the schema says.",
        )
        in findings
    )
    assert (
        Finding(
            client="Switzerland",
            column=None,
            level="warning",
            text="115 of 123 ill: accuracy says little, look at balanced accuracy.",
        )
        in findings
    )
    assert not [finding for finding in findings if finding.level == "error"]


def test_a_zero_below_the_range_is_suspected_to_be_missing() -> None:
    column = Column(name="chol", kind="number", low=80, high=700, unit="mg/dl")
    assert texts(one(column, [0.0] * 46), "chol") == ["chol = 0 in 46 of 46 rows: missing, coded 0?"]


def test_a_hidden_code_is_found_without_a_schema() -> None:
    values = [0.0] * 5 + spread(120, 300)
    population = replace(one(Column(name="chol", kind="number"), values), schema=None)
    assert texts(population, "chol") == ["chol = 0 in 5 of 65 rows: missing, coded 0?"]
    codes = replace(one(Column(name="chol", kind="number"), [-9.0] * 5 + spread(120, 300)), schema=None)
    assert texts(codes, "chol") == ["chol = -9 in 5 of 65 rows: missing, coded -9?"]


def test_an_honest_zero_is_left_alone() -> None:
    counts = np.random.default_rng(0).poisson(3, 200).astype(float).tolist()
    assert not texts(replace(one(Column(name="visits", kind="number"), counts), schema=None), "visits")
    depressions = [0.0] * 30 + spread(0.1, 4)
    assert not texts(replace(one(Column(name="oldpeak", kind="number"), depressions), schema=None), "oldpeak")


def test_values_outside_the_range_are_counted_with_the_unit() -> None:
    column = Column(name="age", kind="number", low=18, high=100, unit="years")
    assert texts(one(column, [*spread(20, 90), 3.0, 140.0, 150.0]), "age") == [
        "age: 1 below and 2 above the declared range, 18 to 100 years, of 63 rows."
    ]


def test_another_unit_is_suspected() -> None:
    column = Column(name="temperature", kind="number", low=34, high=43, unit="°C")
    found = check(one(column, spread(96, 104)))
    assert found[0].level == "error"
    assert found[0].text == (
        "temperature: 60 of 60 values lie outside 34 to 43 °C; converted from °F to °C they fit: another unit?"
    )
    height = Column(name="height", kind="number", low=100, high=220, unit="cm")
    assert "times 100 they fit" in texts(one(height, spread(1.5, 2.0)), "height")[0]


def test_unknown_categories_are_counted() -> None:
    column = Column(name="cp", kind="category", categories=("1", "2"))
    assert texts(one(column, ["1", "2"] * 20 + ["5", "9"]), "cp") == [
        "cp: 2 of 42 rows hold categories that the schema does not list ('5', '9'); it lists 1, 2."
    ]


def test_missing_shares_and_constants_are_told() -> None:
    column = Column(name="a", kind="number", missing=("",))
    assert texts(one(column, [None] * 40 + [2.0] * 20), "a") == [
        "a is missing in 40 of 60 rows.", "a is 2 in all 20 rows where it is known: it tells nothing here.",
    ]  # fmt: skip


def test_a_column_that_is_the_answer_is_found() -> None:
    target = np.array([0, 1] * 40)
    leak = (target * 10 + np.random.default_rng(0).uniform(0, 1, 80)).tolist()
    assert "alone tells the target in 100.0%" in texts(one(Column(name="code", kind="number"), leak, target=target), "code")[0]
    words = one(Column(name="code", kind="category", categories=("x", "y")), ["x", "y"] * 40, target=target)
    assert "alone tells the target" in texts(words, "code")[0]


def test_a_regression_leak_is_found() -> None:
    target = np.random.default_rng(0).normal(size=100)
    population = one(Column(name="log", kind="number"), np.exp(target).tolist(), target=target)
    schema = replace(population.schema, target=Target(name="y", kind="number"))
    assert "exactly with the target" in texts(replace(population, schema=schema, classes=()), "log")[0]


def test_a_row_number_is_found() -> None:
    assert "a row number?" in texts(one(Column(name="id", kind="number"), [float(row) for row in range(N)]), "id")[0]


def test_rows_that_repeat_are_counted() -> None:
    population = labeled(["a"] * 40, [0, 1] * 20)
    assert isinstance(population.features, np.ndarray)
    doubled = replace(population, features=np.vstack([population.features[:38], population.features[:2]]))
    assert "2 of 40 rows repeat another row: entered twice?" in texts(doubled)


def test_small_and_one_sided_clients_are_told() -> None:
    found = check(labeled(["a"] * 40 + ["b"] * 5, [0, 1] * 20 + [1] * 5))
    assert [(finding.client, finding.text[:10]) for finding in found] == [("b", "5 examples"), ("b", "all 5 rows")]


def test_many_clients_are_counted_and_not_listed() -> None:
    made = partition(digits(), "dirichlet:0.05", clients=60, seed=0, min_examples=5)
    findings = check(made)
    assert all(finding.client is None for finding in findings)
    assert any("of 60 clients have fewer than 20 examples" in finding.text for finding in findings)
    assert any("of 60 clients have one class in 90% or more" in finding.text for finding in findings)


def test_images_are_checked_for_labels_only() -> None:
    population = digits()
    assert isinstance(population.features, np.ndarray)
    assert check(replace(population, features=population.features.reshape(-1, 8, 8))) == ()


def test_a_client_that_a_study_would_refuse_is_an_error_and_one_example_is_no_plural() -> None:
    population = labeled(["a"] * 30 + ["b"] * 30 + ["c"], [0, 1] * 30 + [1])
    small = [finding for finding in check(population, min_examples=20) if finding.level == "error"]
    assert [finding.text.split(",")[0] for finding in small] == ["1 example"]
    assert not [finding for finding in check(population) if finding.level == "error"]
