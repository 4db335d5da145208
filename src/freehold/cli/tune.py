"""`freehold tune`: the same number of trials for each algorithm, chosen by validation, and what that changes on test."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.console import errors
from freehold.cli.explained import explained
from freehold.cli.invocation import command
from freehold.cli.options import (
    DATA,
    RESULT,
    STUDY,
    PartitionOptions,
    ResultOptions,
    RunOptions,
    TableOptions,
    TrainingOptions,
    grouped,
    listed,
    settings_of,
)
from freehold.cli.output import STDOUT, check_empty, check_writable, write
from freehold.cli.running import settings_of as settings_from
from freehold.cli.simulate import refuse_beside_a_plan
from freehold.cli.source import load
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.report import Tuning
    from freehold.study import Settings


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is tried, and of which algorithms."""

    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", help="Trials of each algorithm; the first is its defaults.", rich_help_panel=STUDY),
    ] = 16
    algorithm: Annotated[
        list[str] | None,
        typer.Option(
            "--algorithm",
            metavar="A,B",
            help="Which; all if not given. Training alone is always tuned too.",
            rich_help_panel=STUDY,
        ),
    ] = None
    search_seed: Annotated[
        int, typer.Option("--search-seed", min=0, metavar="N", help="Which settings are tried.", rich_help_panel=STUDY)
    ] = 0


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What belongs to a plan, read or written."""

    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="The data of a plan whose task has none.", rich_help_panel=DATA)
    ] = None
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE",
            help="The code that the plan names. It runs here as you, in no sandbox.",
            rich_help_panel=DATA,
        ),
    ] = None
    write_plan: Annotated[
        Path | None,
        typer.Option(
            "--write-plan",
            metavar="FILE.toml",
            help="Write the plan of the algorithm that is best on validation, as it was tuned.",
            rich_help_panel=RESULT,
        ),
    ] = None


@grouped
def tune(
    source: Annotated[
        str, typer.Argument(metavar="NAME|PLAN.toml|FILE", help="heart, digits, a CSV or Parquet file, a folder, or a plan.")
    ],
    table: TableOptions,
    parts: PartitionOptions,
    training: TrainingOptions,
    options: RunOptions,
    results: ResultOptions,
    search: SearchOptions,
    plans: PlanOptions,
) -> None:
    """Tune each algorithm with the same number of trials, by validation examples alone, and show what that changes on test."""
    if search.trials < 1:
        raise UsageError(f"--trials is {search.trials}.", hint="Ask for at least one; the first is the defaults.")
    if source.endswith(".toml"):
        refuse_beside_a_plan(parts, training, search.algorithm)
    elif plans.data is not None or plans.bundle is not None:
        raise UsageError("--data and --bundle belong to a plan.", hint="Name the data itself: freehold tune FILE")
    check_writable(results.json, results.report, plans.write_plan)
    check_empty(options.models, started=options.resume)
    with settings_from(options, training.newcomers) as settings:
        if source.endswith(".toml"):
            found = _of_plan(source, table, training, search, plans, settings)
        else:
            found = _of_data(source, table, parts, training, search, settings)
    _tell(found, results, plans.write_plan, explain=options.explain)


def _of_plan(
    source: str, table: TableOptions, training: TrainingOptions, search: SearchOptions, plans: PlanOptions, settings: Settings
) -> Tuning:
    from freehold import study
    from freehold.plan import load_plan
    from freehold.plan.bundle import read_bundle

    return study.tune(
        load_plan(source),
        trials=search.trials,
        search_seed=search.search_seed,
        seeds=training.seeds,
        plan_data=None if plans.data is None else load(plans.data, table),
        bundle=None if plans.bundle is None else read_bundle(plans.bundle),
        settings=settings,
        command=command(),
    )


def _of_data(
    source: str,
    table: TableOptions,
    parts: PartitionOptions,
    training: TrainingOptions,
    search: SearchOptions,
    settings: Settings,
) -> Tuning:
    from freehold import study

    return study.tune(
        load(source, table),
        trials=search.trials,
        algorithms=listed(search.algorithm) or None,
        search_seed=search.search_seed,
        seeds=training.seeds,
        clients=parts.clients,
        partition=parts.partition,
        rounds=training.rounds,
        epochs=training.epochs,
        batch_size=training.batch_size,
        lr=training.lr,
        hyperparameters=settings_of(training.set) or None,
        min_examples=parts.min_examples,
        devices=parts.devices,
        settings=settings,
        command=command(),
    )


def _tell(tuning: Tuning, results: ResultOptions, write_plan: Path | None, *, explain: bool) -> None:
    """Files first, each written whole, then tables on the terminal."""
    from freehold.plan import dumps
    from freehold.report import tuning_dumps

    if results.report is not None:
        from freehold.report.page import page

        write(results.report, page(tuning.comparison))
    if results.json is not None:
        write(results.json, tuning_dumps(tuning))
    if write_plan is not None and tuning.plan is not None:
        write(write_plan, dumps(tuning.plan))
    if write_plan is not None and tuning.plan is None:
        errors().print(f"There is no plan to write to {write_plan}: nothing but training alone came through.")
    if STDOUT in (results.json, results.report, write_plan):
        return
    from freehold.cli.show import show_tuning

    show_tuning(tuning)
    if explain:
        explained(tuning.comparison)
    for path in (results.json, results.report, write_plan if tuning.plan is not None else None):
        if path is not None:
            sys.stdout.write(f"Written: {path}\n")
