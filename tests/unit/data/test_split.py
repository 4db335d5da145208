from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.data import Population, SplitRule, digits, split
from freehold.errors import HyperparameterError
from tests.unit.data.populations import labeled

RULES = st.builds(
    SplitRule, test=st.sampled_from([0.1, 0.25, 0.5]), validation=st.sampled_from([0.0, 0.15, 0.4]), stratify=st.booleans()
)
EXAMPLES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60)


def made(examples: list[tuple[str, int, int]], **which: bool) -> Population:
    extra = np.array([each[2] for each in examples])
    more = {name: extra.astype(str) if name == "group" else extra for name, wanted in which.items() if wanted}
    return labeled([each[0] for each in examples], [each[1] for each in examples], **more)


def joined(parts: Mapping[str, np.ndarray]) -> list[int]:
    return sorted(np.concatenate(list(parts.values())).tolist())


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, rule=RULES, group=st.booleans(), time=st.booleans(), seed=st.integers(0, 3))
def test_splits_are_disjoint_and_complete(
    examples: list[tuple[str, int, int]], rule: SplitRule, group: bool, time: bool, seed: int
) -> None:
    population = made(examples, group=group, time=time)
    for client, parts in split(population, rule, seed=seed).items():
        assert joined(parts) == population.rows[client].tolist()


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, rule=RULES, time=st.booleans())
def test_no_split_stays_empty_that_can_be_filled(examples: list[tuple[str, int, int]], rule: SplitRule, time: bool) -> None:
    population = made(examples, time=time)
    for client, parts in split(population, rule, seed=0).items():
        size = population.sizes[client]
        assert len(parts["train"]) >= 1
        assert (len(parts["test"]) >= 1) == (size >= 2)
        assert (len(parts["validation"]) >= 1) == (size >= 3 and rule.validation > 0)


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, rule=RULES, time=st.booleans())
def test_no_group_straddles_splits(examples: list[tuple[str, int, int]], rule: SplitRule, time: bool) -> None:
    population = made(examples, group=True, time=time)
    assert population.group is not None
    for client, parts in split(population, rule, seed=0).items():
        groups = {name: set(population.group[rows].tolist()) for name, rows in parts.items()}
        assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
        assert not groups["validation"] & groups["test"]
        count = len(set(population.group[population.rows[client]].tolist()))
        assert groups["train"] and bool(groups["test"]) == (count >= 2)
        assert bool(groups["validation"]) == (count >= 3 and rule.validation > 0) or len(population.rows[client]) < 3


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, rule=RULES)
def test_time_runs_from_train_over_validation_to_test(examples: list[tuple[str, int, int]], rule: SplitRule) -> None:
    population = made(examples, time=True)
    assert population.time is not None
    for parts in split(population, rule, seed=0).values():
        times = [population.time[parts[name]] for name in ("train", "validation", "test")]
        filled = [each for each in times if len(each)]
        assert all(before.max() <= after.min() for before, after in pairwise(filled))


@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, others=EXAMPLES, rule=RULES, group=st.booleans())
def test_a_clients_split_depends_on_no_other_client(
    examples: list[tuple[str, int, int]], others: list[tuple[str, int, int]], rule: SplitRule, group: bool
) -> None:
    own = [("a", *each[1:]) for each in examples]
    alone = split(made(own, group=group), rule, seed=1)["a"]
    mixed = [("b", *each[1:]) for each in others]
    population = made(mixed[:5] + own + mixed[5:], group=group)
    among = split(population, rule, seed=1)["a"]
    start = len(mixed[:5])
    assert all((alone[name] + start).tolist() == among[name].tolist() for name in alone)


def test_the_seed_decides() -> None:
    population = labeled(["a"] * 40, [0, 1] * 20)
    once, again, other = (split(population, SplitRule(), seed=seed)["a"] for seed in (0, 0, 1))
    assert all(once[name].tolist() == again[name].tolist() for name in once)
    assert once["test"].tolist() != other["test"].tolist()


def test_splits_are_the_same_in_every_process() -> None:
    parts = split(labeled(["a"] * 12, [0, 1, 2] * 4), SplitRule(), seed=0)["a"]
    assert {name: rows.tolist() for name, rows in parts.items()} == PINNED


def test_shares_of_classes_are_kept() -> None:
    population = labeled(["a"] * 100, [0] * 80 + [1] * 20)
    parts = split(population, SplitRule(test=0.25, validation=0.15), seed=3)["a"]
    counts = {name: np.bincount(population.target[rows]).tolist() for name, rows in parts.items()}
    assert counts == {"train": [48, 12], "validation": [12, 3], "test": [20, 5]}


def test_a_class_with_one_example_stays_in_train() -> None:
    population = labeled(["a"] * 21, [0] * 20 + [1])
    assert all(20 in split(population, SplitRule(), seed=seed)["a"]["train"] for seed in range(10))


def test_group_splits_keep_shares_of_classes_where_they_can() -> None:
    groups = np.repeat([f"g{index}" for index in range(20)], 5)
    population = labeled(["a"] * 100, [0] * 50 + [1] * 50, group=groups)
    parts = split(population, SplitRule(), seed=0)["a"]
    assert all(0.25 <= population.target[rows].mean() <= 0.75 for rows in parts.values())


def test_splits_of_the_data_are_honored() -> None:
    said = np.array(["train"] * 8 + ["test"] * 3 + ["validation"])
    parts = split(labeled(["a"] * 12, [0, 1] * 6, split=said), SplitRule(), seed=0)["a"]
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [*range(8)], "validation": [11], "test": [8, 9, 10]}


def test_a_validation_split_that_the_data_lacks_comes_from_train() -> None:
    said = np.array(["train"] * 20 + ["test"] * 5)
    parts = split(labeled(["a"] * 25, [0, 1] * 12 + [0], split=said), SplitRule(validation=0.2), seed=0)["a"]
    assert parts["test"].tolist() == [20, 21, 22, 23, 24]
    assert len(parts["validation"]) == 4 and set(parts["validation"].tolist()) < set(range(20))


def test_many_small_classes_cause_no_error() -> None:
    parts = split(labeled(["a"] * 30, list(range(30))), SplitRule(), seed=0)["a"]
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 18, "validation": 4, "test": 8}


def test_digits_are_split_in_proportion() -> None:
    population = digits()
    test = split(population, SplitRule(), seed=0)["all"]["test"]
    assert np.abs(np.bincount(population.target[test]) - np.bincount(population.target) / 4).max() < 1


@pytest.mark.parametrize("shares", [{"test": 1.0}, {"validation": -0.1}, {"test": 0.6, "validation": 0.4}])
def test_shares_that_leave_no_train_rows_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(HyperparameterError):
        SplitRule(**shares)


PINNED = {"train": [0, 3, 4, 5, 7, 8, 10], "validation": [2, 9], "test": [1, 6, 11]}
