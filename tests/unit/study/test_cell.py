"""What a cell measures, and on which examples: validation chooses, test judges, newcomers only watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from freehold.data import Prepared
from freehold.data.prepare import tensors
from freehold.plan import Training
from freehold.study import plan_for
from freehold.study.cell import Cell, CellResult, run_cell
from freehold.study.compare import _paired_se, _select_row
from freehold.study.settings import Settings, Trial
from freehold.tasks import task_definition

SPLITS = {"train": range(0, 30), "validation": range(30, 41), "test": range(41, 60)}


def prepared(*, wrong_validation: bool = False, wrong_newcomer: bool = False) -> Prepared:
    """Three clients of one concept; `wrong_validation`: the labels there are flipped, `wrong_newcomer`: all of c's are."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(180, 4)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5, 0.0] > 0).astype(np.int64)
    rows = {
        c: {name: np.array(where, dtype=np.int64) + 60 * i for name, where in SPLITS.items()}
        for i, c in enumerate(("a", "b", "c"))
    }
    if wrong_validation:
        for own in rows.values():
            y[own["validation"]] = 1 - y[own["validation"]]
    if wrong_newcomer:
        y[120:] = 1 - y[120:]
    return tensors(x, y, rows, feature_names=tuple("pqrs"), classes=("no", "yes"))


def ran(data: Prepared, algorithm: str = "fedavg", *, newcomers: Sequence[str] = (), rounds: int = 16) -> CellResult:
    definition = task_definition("tabular")
    training = Training(rounds=rounds, batch_size=8, epochs=2)
    plan = plan_for(definition, algorithm, training=training, hyperparameters={"*": {"lr": 0.3}})
    return run_cell(
        Cell(index=0, trial=Trial(name=algorithm, title=algorithm, plan=plan), seed=0),
        definition, data, settings=Settings(), newcomers=newcomers, checkpoint=None,
        stop=lambda: False, closed=lambda done: None,
    )  # fmt: skip


def test_the_curve_and_the_losses_are_of_validation_examples_and_the_figures_of_test_examples() -> None:
    found = ran(prepared(wrong_validation=True))
    assert found.curve[-1][1] < 0.2
    for client, figures in found.figures.items():
        assert figures["accuracy"] > 0.8
        assert len(found.losses[client]) == len(SPLITS["validation"])
        assert np.mean(found.losses[client]) > 1 > figures["log_loss"]
        assert len(found.right[client]) == len(SPLITS["test"])
        assert np.mean(found.right[client]) == pytest.approx(figures["accuracy"])


def test_the_best_round_is_the_one_that_is_best_on_validation_and_brings_its_test_figures() -> None:
    found = ran(prepared(wrong_validation=True))
    values = dict(found.curve)
    assert values[found.best_round] == max(values.values()) > min(values.values())
    assert found.best_round < 16
    short = ran(prepared(wrong_validation=True), rounds=found.best_round)
    assert found.best_figures == short.figures != found.figures


def test_the_mean_of_the_curve_is_over_the_clients_that_take_part() -> None:
    honest = ran(prepared(wrong_newcomer=True), newcomers=("c",))
    assert honest.curve[-1][1] > 0.8 > honest.figures["c"]["accuracy"] + 0.5


@pytest.mark.parametrize("algorithm", ["fedavg", "ditto", "scaffold"])
def test_a_newcomer_changes_nothing_for_the_others(algorithm: str) -> None:
    one, other = (ran(prepared(wrong_newcomer=wrong), algorithm, newcomers=("c",)) for wrong in (False, True))
    for client in ("a", "b"):
        assert one.figures[client] == other.figures[client]
        assert one.losses[client] == other.losses[client]
    assert one.curve == other.curve


def test_who_trains_alone_does_so_as_a_newcomer_too() -> None:
    assert ran(prepared(), "local", newcomers=("c",)).figures == ran(prepared(), "local").figures


def test_all_data_pooled_in_one_place_is_measured_for_each_client() -> None:
    data = prepared()
    together = {name: torch.cat([data.rows[c][name] for c in data.clients]) for name in SPLITS}
    pooled = replace(data, rows={**data.rows, "all data pooled": together})
    definition = task_definition("tabular")
    plan = plan_for(definition, "local", training=Training(rounds=6, batch_size=8, epochs=2), hyperparameters={"*": {"lr": 0.3}})
    found = run_cell(
        Cell(index=0, trial=Trial(name="Pooled", title="Pooled", plan=plan, pooled=True), seed=0),
        definition, pooled, settings=Settings(engine="loop"), newcomers=(), checkpoint=None,
        stop=lambda: False, closed=lambda done: None,
    )  # fmt: skip
    assert set(found.figures) == {"a", "b", "c"}
    assert all(figures["accuracy"] > 0.8 for figures in found.figures.values())


def test_the_standard_error_is_that_of_the_paired_difference() -> None:
    right, alone = [1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0]
    assert _paired_se(right, alone) == pytest.approx(np.std([0, 0, 1, 0, -1], ddof=1) / np.sqrt(5))
    assert _paired_se(right, right) == 0.0


def test_what_each_would_serve_is_chosen_by_validation_and_judged_by_test() -> None:
    def cell(validation_loss: float, right: list[float]) -> CellResult:
        losses = [validation_loss + 0.01 * i for i in range(9)]
        figures = {"a": {"accuracy": float(np.mean(right))}}
        return CellResult(
            figures=figures, best_figures={}, best_round=-1, curve=[], losses={"a": losses}, right={"a": right}, sent_bytes=0,
            seconds=0.0,
        )  # fmt: skip

    # On test data the shared model is best, on validation data the personal one; the test set must not choose.
    rows = {
        "local": {0: cell(1.0, [0.0, 0.0, 1.0, 0.0])},
        "fedavg": {0: cell(0.9, [1.0, 1.0, 1.0, 1.0])},
        "ditto": {0: cell(0.5, [0.0, 1.0, 1.0, 0.0])},
    }
    (row,) = _select_row(task_definition("tabular"), rows, [0])
    (result,) = row.results
    assert result.served == {"a": "personal"}
    assert result.figures["a"]["accuracy"] == 0.5
    assert result.paired_se["a"] == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
