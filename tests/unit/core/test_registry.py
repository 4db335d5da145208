"""Algorithms by name, and hyper-parameters that are checked before anything runs."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from freehold.core import (
    Algorithm,
    Between,
    Count,
    Fraction,
    Rate,
    Strength,
    Task,
    algorithm_entry,
    algorithm_names,
    entry_of,
)
from freehold.errors import HyperparameterError, UnknownName
from tests.problems import mixed, plain

TASK = mixed()


def test_names_are_sorted_and_each_builds_with_its_defaults() -> None:
    names = algorithm_names()
    assert list(names) == sorted(set(names)) and {"local", "fedavg", "ditto"} <= set(names)
    for name in names:
        assert algorithm_entry(name).build(TASK).name == name


def test_an_entry_tells_what_it_is() -> None:
    entry = algorithm_entry("ditto")
    assert entry.name == "ditto" and entry.package == "freehold"
    assert entry.summary.startswith("FedAvg for all") and "arXiv:2012.04221" in entry.citation
    assert "lam = 0" in entry.explanation
    lam = entry.hyperparameters["lam"]
    assert (lam.kind, lam.default, lam.required, str(lam.between)) == (float, 1.0, False, "at least 0")


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_says_what_it_does_and_has_defaults_in_range(name: str) -> None:
    entry = algorithm_entry(name)
    assert entry.summary and entry.citation and entry.package
    for hyperparameter in entry.hyperparameters.values():
        if hyperparameter.default is not None:
            assert hyperparameter.check(name, hyperparameter.default) == hyperparameter.default


@pytest.mark.parametrize(
    ("wrong", "near"), [("dito", "ditto"), ("fed-avg", "fedavg"), ("FedBN", "fedbn"), ("scafold", "scaffold")]
)
def test_an_unknown_name_has_its_near_miss(wrong: str, near: str) -> None:
    with pytest.raises(UnknownName, match=wrong) as refusal:
        algorithm_entry(wrong)
    assert refusal.value.hint == f"Did you mean {near!r}?"


def test_a_name_like_no_other_gets_the_whole_list() -> None:
    with pytest.raises(UnknownName) as refusal:
        algorithm_entry("zzz")
    assert refusal.value.hint.startswith("Known: ") and "fedavg" in refusal.value.hint


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("ditto", {"lr": 0.0}, "ditto.lr is 0.0, but must be above 0"),
        ("ditto", {"lr": -1}, "ditto.lr is -1.0, but must be above 0"),
        ("ditto", {"lr": math.nan}, "ditto.lr is nan"),
        ("ditto", {"lr": math.inf}, "ditto.lr is inf"),
        ("ditto", {"lam": -0.1}, "ditto.lam is -0.1, but must be at least 0"),
        ("apfl", {"alpha": 1.5}, "apfl.alpha is 1.5, but must be at least 0 and at most 1"),
        ("ifca", {"clusters": 0}, "ifca.clusters is 0, but must be at least 1"),
        ("pfedme", {"inner_steps": 10**12}, "at most 1000"),
        ("ifca", {"clusters": 2.0}, "ifca.clusters is 2.0, but must be of type int"),
        ("ifca", {"clusters": True}, "must be of type int"),
        ("ditto", {"lr": True}, "must be of type float"),
        ("ditto", {"lr": "0.1"}, "must be of type float"),
        ("local", {"optimizer": "adm"}, "local.optimizer is 'adm', but must be one of sgd, adam"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, settings: dict[str, float | str], said: str) -> None:
    with pytest.raises(HyperparameterError) as refusal:
        algorithm_entry(name).build(TASK, **settings)
    assert said in refusal.value.message and refusal.value.hint


def test_an_unknown_hyperparameter_has_its_near_miss() -> None:
    with pytest.raises(HyperparameterError, match="ditto has no hyper-parameter 'lamb'") as refusal:
        algorithm_entry("ditto").build(TASK, lamb=1.0)
    assert refusal.value.hint == "Did you mean 'lam'?"


def test_a_whole_number_will_do_for_a_float() -> None:
    checked = algorithm_entry("ditto").hyperparameters["lam"].check("ditto", 2)
    assert checked == 2.0 and type(checked) is float


def notebook(
    task: Task,
    *,
    lr: Rate,
    mu: Strength = 0.5,
    share: Fraction = 1.0,
    times: Count = 3,
    tune: Rate | None = None,
    free: float = -2.0,
    kind: Literal["a", "b"] = "a",
    on: bool = True,
) -> Algorithm:
    """An algorithm from a notebook.

    More of it.
    """
    return algorithm_entry("fedavg").build(task, lr=lr)


def test_an_algorithm_from_a_notebook_has_an_entry_too() -> None:
    entry = entry_of("mine", notebook)
    assert entry.summary == "An algorithm from a notebook." and "More of it." in entry.explanation and entry.package == ""
    kinds = {k: (h.kind, h.required, h.choices) for k, h in entry.hyperparameters.items()}
    assert kinds == {
        "lr": (float, True, ()),
        "mu": (float, False, ()),
        "share": (float, False, ()),
        "times": (int, False, ()),
        "tune": (float, False, ()),
        "free": (float, False, ()),
        "kind": (str, False, ("a", "b")),
        "on": (bool, False, ()),
    }
    assert entry.hyperparameters["tune"].between == Between(0, above=True)
    assert entry.build(TASK, lr=0.1, tune=0.5, free=-9.0, kind="b", on=False).name == "fedavg"


def test_a_hyperparameter_without_a_default_must_be_given() -> None:
    with pytest.raises(HyperparameterError, match="mine needs the hyper-parameter 'lr'") as refusal:
        entry_of("mine", notebook).build(TASK)
    assert refusal.value.hint == "Set lr, a float."


def test_one_without_hyperparameters_says_so() -> None:
    def none(task: Task) -> Algorithm:
        return algorithm_entry("fedavg").build(task)

    with pytest.raises(HyperparameterError) as refusal:
        entry_of("none", none).build(plain(), lr=0.1)
    assert refusal.value.hint == "It has none."


@pytest.mark.parametrize(
    ("between", "inside", "outside"),
    [
        (Between(0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan)),
        (Between(0, above=True), (1e-9, 1e9), (0, -1, math.inf, math.nan)),
        (Between(1), (1, 2), (0, 0.9, math.inf)),
    ],
)
def test_a_range_knows_its_ends(between: Between, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(value in between for value in inside) and not any(value in between for value in outside)
