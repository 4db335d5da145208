"""Tuning from end to end, with few rounds: the choice is validation's, and what is shown is what the plan gives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as changed

from freehold import study
from freehold.data import Population
from freehold.engines import sweep
from freehold.errors import Diverged, NotAsynchronous, NoValidation, UnknownName, UsageError
from freehold.plan import RoundPolicy, dumps, parse
from freehold.report import Tuned, Tuning, changes, from_json, tuning_json
from freehold.study.api import source_of
from freehold.study.source import HeldOut
from freehold.tasks import task_definition

SMALL = {"trials": 3, "rounds": 2, "seeds": 3, "algorithms": ("fedavg", "ditto"), "command": "test"}


@pytest.fixture(scope="module")
def heart() -> Tuning:
    return study.tune("heart", **SMALL)


def of(tuning: Tuning, name: str) -> Tuned:
    return next(each for each in tuning.algorithms if each.name == name)


def told(tuning: Tuning) -> object:
    """All but the clock."""
    document = json.loads(json.dumps(tuning_json(tuning)))
    for row in document["comparison"]["rows"]:
        row.pop("seconds")
    return document


def test_each_algorithm_has_the_same_budget_with_its_defaults_and_training_alone_among_them(heart: Tuning) -> None:
    assert [each.name for each in heart.algorithms] == ["local", "fedavg", "ditto"]
    for each in heart.algorithms:
        assert len(each.tried) == 3
        assert each.tried[0].hyperparameters["lr"] == 0.05
        assert all(trial.rode for trial in each.tried)
        assert each.best is not None
        assert each.best.validation == max(trial.validation for trial in each.tried if trial.validation is not None)
    assert {one.name for one in of(heart, "ditto").space} == {"lr", "lam"}


def test_test_figures_are_of_the_chosen_and_the_defaults_alone_and_their_difference_is_paired(heart: Tuning) -> None:
    expected = {each.name for each in heart.algorithms} | {f"{each.name}-defaults" for each in heart.algorithms if each.chosen}
    assert {row.name for row in heart.comparison.rows} == expected
    found = changes(heart)
    assert found.keys() == {each.name for each in heart.algorithms if each.chosen}
    assert found, "no algorithm of this study changed, so nothing was tested"
    means = {row.name: row for row in heart.comparison.rows}
    for name, (before, after) in found.items():
        assert after.paired is not None
        assert after.paired.difference is not None
        assert after.mean is not None
        assert before.mean is not None
        assert after.paired.difference == pytest.approx(after.mean - before.mean)
        assert after.paired.low is not None  # three seeds are enough for an interval
        assert all(result.paired_se for result in means[name].results)


def test_the_same_seed_gives_the_same_report_and_json_keeps_the_comparison(heart: Tuning) -> None:
    assert told(study.tune("heart", **SMALL)) == told(heart)
    document = json.loads(json.dumps(tuning_json(heart)))
    assert document["kind"] == "tuning"
    assert from_json(document["comparison"]).rows == heart.comparison.rows


def test_one_by_one_the_same_is_chosen_and_the_report_says_why_they_did_not_ride(
    heart: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAYS_BYTES", 0)
    settings = SMALL | {"algorithms": ("ditto",)}
    apart = study.tune("heart", **settings)
    loop = study.tune("heart", **settings, settings=study.Settings(engine="loop"))
    assert any("one by one: Alone, Ditto" in note and "size" in note for note in apart.comparison.notes)
    assert any("one by one: Alone, Ditto" in note and "loop" in note for note in loop.comparison.notes)
    for other in (apart, loop):
        for two in other.algorithms:
            one = of(heart, two.name)
            assert one.chosen == two.chosen
            assert not any(trial.rode for trial in two.tried)
            for first, second in zip(one.tried, two.tried, strict=True):
                assert first.hyperparameters == second.hyperparameters
                assert first.validation == pytest.approx(second.validation)
                assert first.loss == pytest.approx(second.loss, rel=1e-4)


def test_nothing_of_the_test_examples_reaches_the_choice() -> None:
    definition = task_definition("heart")
    population = task_definition("heart").population()
    tested = HeldOut(drawn=source_of(definition, population), first=0).prepared(0).rows
    target = population.target.copy()
    for rows in tested.values():
        target[rows["test"].numpy()] = 1 - target[rows["test"].numpy()]
    said = np.full(len(target), "train", dtype="<U10")
    for rows in tested.values():
        said[rows["test"].numpy()] = "test"
    settings = {**SMALL, "algorithms": ("ditto",)}
    honest, flipped = (study.tune(replace(population, target=t, split=said), **settings) for t in (population.target, target))
    for one, two in zip(honest.algorithms, flipped.algorithms, strict=True):
        assert one.tried == two.tried
        assert one.chosen == two.chosen
    rows = [{row.name: row.results[0].figures for row in found.comparison.rows} for found in (honest, flipped)]
    assert rows[0] != rows[1]


def test_test_examples_are_the_same_for_all_seeds_and_the_rest_is_split_anew() -> None:
    definition = task_definition("heart")
    source = HeldOut(drawn=source_of(definition, definition.population()), first=7)
    plain = source_of(definition, definition.population()).prepared(7)
    first, second = source.prepared(7), source.prepared(8)
    for client in first.clients:
        for prepared in (first, second):
            assert prepared.rows[client]["test"].tolist() == plain.rows[client]["test"].tolist()
        sizes = [len(prepared.rows[client]["validation"]) for prepared in (first, plain)]
        assert abs(sizes[0] - sizes[1]) <= 1
    assert any(first.rows[c]["validation"].tolist() != second.rows[c]["validation"].tolist() for c in first.clients)


def test_the_plan_of_the_winner_runs_with_the_settings_that_were_chosen(heart: Tuning) -> None:
    assert heart.winner in ("fedavg", "ditto")
    assert heart.plan is not None
    plan = parse(dumps(heart.plan))
    best = of(heart, heart.winner).best
    assert best is not None
    assert plan.algorithm.hyperparameters == best.hyperparameters
    assert plan.repeats == 3
    found = study.simulate(plan, seeds=1, command="test")
    assert found.asked == heart.winner
    # The test examples of the first seed are those that tuning held out.
    mine = next(row for row in found.rows if row.name == heart.winner).results[0].figures
    tuned = next(row for row in heart.comparison.rows if row.name == heart.winner).results[0].figures
    assert mine.keys() == tuned.keys()


def test_a_plan_is_tuned_with_its_companions_and_keeps_the_rest() -> None:
    plan = study.make_plan("heart", "ditto", rounds=2, repeats=2)
    found = study.tune(plan, trials=3, command="test")
    assert [each.name for each in found.algorithms] == ["local", "fedavg", "ditto"]
    assert found.winner == "ditto"
    assert found.plan is not None
    best = of(found, "ditto").best
    assert best is not None
    assert found.plan.algorithm.hyperparameters == best.hyperparameters
    assert (found.plan.training, found.plan.repeats, found.plan.task) == (plan.training, 2, plan.task)
    assert [each.name for each in found.plan.companions] == ["local", "fedavg"]
    with pytest.raises(NotAsynchronous):
        study.tune(changed(plan, round=RoundPolicy(mode="asynchronous", buffer=2)), trials=2)


def test_digits_with_clients_that_were_made_and_a_count_that_does_not_ride() -> None:
    found = study.tune(
        "digits", trials=3, algorithms="ifca", rounds=1, seeds=1, clients=6, partition="dirichlet:0.5", lr=0.2, command="test"
    )
    clusters = of(found, "ifca")
    assert {one.name for one in clusters.space} == {"lr", "clusters"}
    assert all(isinstance(trial.hyperparameters["clusters"], int) for trial in clusters.tried)
    assert clusters.best is not None


def test_what_is_set_is_held(heart: Tuning) -> None:
    found = study.tune("heart", **SMALL | {"trials": 2}, hyperparameters={"ditto": {"lam": 0.5}, "local": {"lr": 0.1}})
    assert [one.name for one in of(found, "ditto").space] == ["lr"]
    assert all(trial.hyperparameters["lam"] == 0.5 for trial in of(found, "ditto").tried)
    assert [trial.hyperparameters for trial in of(found, "local").tried] == [{"lr": 0.1}]


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(UsageError, match="0 trials"):
        study.tune("heart", trials=0)
    with pytest.raises(UnknownName, match="dito") as unknown:
        study.tune("heart", trials=2, algorithms="dito")
    assert "ditto" in unknown.value.hint
    with pytest.raises(UsageError, match="no number to tune"):
        study.tune("heart", trials=2, algorithms="fedavg", hyperparameters={"fedavg": {"lr": 0.1}})
    with pytest.raises(UsageError, match="nobody would train"):
        study.tune("heart", trials=2, settings=study.Settings(newcomers=4))
    with pytest.raises(Diverged, match="Every trial"):
        study.tune("heart", trials=2, algorithms="fedavg", lr=1e38, rounds=2, seeds=1)


def test_without_validation_examples_there_is_nothing_to_choose_by() -> None:
    population = task_definition("heart").population()
    said = np.where(np.arange(len(population.target)) % 2 == 0, "test", "train")
    few: Population = replace(population, split=said)
    with pytest.raises(NoValidation) as refused:
        study.tune(replace(few, split=_one_train_row_each(few)), trials=2, min_examples=1)
    assert "--split" in refused.value.hint


def _one_train_row_each(population: Population) -> np.ndarray:
    said = np.full(len(population.target), "test", dtype="<U10")
    for rows in population.rows.values():
        said[rows[:1]] = "train"
    return said


def test_every_field_has_its_line_in_the_reference_and_the_reference_no_other(heart: Tuning) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "tuning-json.md"
    documented = set(re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert documented == set(paths(tuning_json(heart)))


FREE = {"hyperparameters", "verdicts", "per_client", "comparison", "interval"}


def paths(value: object, at: str = "") -> list[str]:
    """Every field, lists as []; what is named by the study, or documented elsewhere, is not gone into."""
    if isinstance(value, dict):
        found = []
        for name, inner in value.items():
            here = f"{at}.{name}" if at else name
            found += [here, *([] if name in FREE else paths(inner, here))]
        return found
    return [path for inner in value for path in paths(inner, f"{at}[]")] if isinstance(value, list) else []
