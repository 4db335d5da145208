import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.data import Column, Population, Schema, Target, digits, heart, partition
from freehold.errors import DataError, FreeholdError, HyperparameterError, TooFewExamples, UnknownName
from tests.unit.data.populations import labeled

HOW = st.sampled_from(
    ["dirichlet:0.01", "dirichlet:0.1", "dirichlet:100", "classes:1", "classes:2", "classes:3", "quantity:0.3", "iid"]
)


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    how=HOW,
    clients=st.integers(1, 12),
    seed=st.integers(0, 3),
    min_examples=st.integers(1, 12),
)
def test_every_row_goes_to_one_client_and_every_client_has_enough(
    labels: list[int], how: str, clients: int, seed: int, min_examples: int
) -> None:
    population = labeled(["all"] * len(labels), labels)
    try:
        made = partition(population, how, clients=clients, seed=seed, min_examples=min_examples)
    except (TooFewExamples, HyperparameterError) as error:
        assert error.hint and (how.startswith("classes") or len(labels) < clients * min_examples)
        return
    assert len(made.clients) == clients and min(made.sizes.values()) >= min_examples
    assert sum(made.sizes.values()) == len(labels)
    assert made.features is population.features and made.target is population.target
    again = partition(population, how, clients=clients, seed=seed, min_examples=min_examples)
    assert (made.client == again.client).all()


def test_dirichlet_skews_labels_by_alpha() -> None:
    def skew(alpha: str) -> float:
        made = partition(digits(), f"dirichlet:{alpha}", clients=10, seed=0)
        return float(np.mean([np.bincount(made.target[rows]).max() / len(rows) for rows in made.rows.values()]))

    assert skew("0.1") > 0.4 > 0.2 > skew("100")


def test_dirichlet_fills_up_small_clients_when_no_draw_suffices() -> None:
    made = partition(digits(), "dirichlet:0.01", clients=60, seed=0, min_examples=25)
    assert min(made.sizes.values()) >= 25 and sum(made.sizes.values()) == 1797


def test_classes_gives_each_client_that_many() -> None:
    made = partition(digits(), "classes:2", clients=20, seed=0)
    assert {len(np.unique(made.target[rows])) for rows in made.rows.values()} == {2}
    assert len(set(made.sizes.values())) > 10
    holders = [len({made.client[row] for row in np.flatnonzero(made.target == label)}) for label in range(10)]
    assert set(holders) == {4}


def test_quantity_keeps_labels_alike() -> None:
    made = partition(digits(), "quantity:0.5", clients=5, seed=1, min_examples=100)
    sizes = list(made.sizes.values())
    assert max(sizes) > 2 * min(sizes) and min(sizes) >= 100
    assert all(np.bincount(made.target[rows], minlength=10).min() > 0 for rows in made.rows.values())


def test_shift_moves_each_clients_features_apart() -> None:
    made = partition(digits(), "shift:1.0", clients=4, seed=0)
    assert isinstance(made.features, np.ndarray)
    means = np.stack([made.features[rows].mean(axis=0) for rows in made.rows.values()])
    assert means.std(axis=0).max() > 0.2
    assert max(made.sizes.values()) - min(made.sizes.values()) <= 1


def test_shift_of_zero_changes_no_feature() -> None:
    population = digits()
    made = partition(population, "shift:0", clients=4, seed=0)
    assert isinstance(made.features, np.ndarray)
    np.testing.assert_array_equal(made.features, population.features)


def test_shift_leaves_categories_flags_and_missing_cells() -> None:
    population = heart()
    made = partition(population, "shift:2", clients=3, seed=0)
    assert isinstance(made.features, pl.DataFrame) and isinstance(population.features, pl.DataFrame)
    assert made.features["cp"].equals(population.features["cp"]) and made.features["sex"].equals(population.features["sex"])
    assert not made.features["age"].equals(population.features["age"])
    assert made.features["chol"].null_count() == population.features["chol"].null_count() == 202
    assert made.schema is not None and made.schema.column("age").high is None


def test_regression_is_partitioned_by_quantile_bins() -> None:
    target = np.random.default_rng(0).exponential(size=500)
    schema = Schema(columns=(Column(name="a", kind="number"),), target=Target(name="y", kind="number"))
    frame = pl.DataFrame({"a": target})
    population = Population(name="r", features=frame, target=target, client=np.full(500, "all"), schema=schema, classes=())
    made = partition(population, "dirichlet:0.1", clients=5, seed=0)
    means = [made.target[rows].mean() for rows in made.rows.values()]
    assert max(means) > 2 * min(means)


def test_clients_are_named_in_natural_order_and_the_partition_is_noted() -> None:
    made = partition(digits(), "iid", clients=12, seed=7)
    assert made.clients[0] == "client 01" and made.clients[-1] == "client 12"
    assert "12 clients made by iid with seed 7" in made.notes[-1]


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("dirichle:1", UnknownName, "dirichlet"),
        ("dirichlet:0", HyperparameterError, "above 0"),
        ("dirichlet", HyperparameterError, "above 0"),
        ("classes:1.5", HyperparameterError, "whole number"),
        ("classes:11", HyperparameterError, "11 of 10 classes"),
        ("shift:-1", HyperparameterError, "from 0 on"),
        ("iid:3", HyperparameterError, "no parameter"),
        ("classes:2", TooFewExamples, "cannot hold 10 classes"),
    ],
)
def test_partitions_that_make_no_sense_are_refused(how: str, error: type[FreeholdError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        partition(digits(), how, clients=3, seed=0)
    assert caught.value.hint


def test_too_many_clients_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(TooFewExamples, match="2000 are needed"):
        partition(digits(), "iid", clients=200, seed=0)


def test_groups_are_not_torn() -> None:
    with pytest.raises(DataError, match="groups"):
        partition(labeled(["a"] * 4, [0, 1, 0, 1], group=np.array(list("xxyy"))), "iid", clients=2, seed=0, min_examples=1)
