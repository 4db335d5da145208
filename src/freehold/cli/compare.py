"""`freehold compare`: algorithms side by side on the same clients, with training alone as the measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.invocation import command
from freehold.cli.options import (
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
from freehold.cli.running import run
from freehold.cli.source import load
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.report import Comparison
    from freehold.study import Settings

BASELINE = "local"


@grouped
def compare(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE|FOLDER", help="heart, digits, a CSV or Parquet file, a folder of them.")
    ],
    table: TableOptions,
    parts: PartitionOptions,
    training: TrainingOptions,
    options: RunOptions,
    results: ResultOptions,
    algorithms: Annotated[
        list[str] | None,
        typer.Option(
            "--algorithms",
            metavar="A,B",
            help="Which; all if not given. A+bfloat16 rounds contributions.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="NAME", help="flamby: the published table of heart.", rich_help_panel=STUDY),
    ] = None,
) -> None:
    """Compare algorithms on the same clients: who gains, who loses, and for whom the data cannot tell."""
    changed = settings_of(training.set)
    chosen = selected(algorithms)
    if protocol and (parts.devices or parts.min_examples or training.newcomers):
        raise UsageError("A published protocol says which clients count.", hint="Leave out what changes it.")

    def study(settings: Settings) -> Comparison:
        from freehold import study

        return study.compare(
            load(source, table),
            algorithms=chosen,
            seeds=training.seeds,
            protocol=protocol,
            clients=parts.clients,
            partition=parts.partition,
            rounds=training.rounds,
            epochs=training.epochs,
            batch_size=training.batch_size,
            lr=training.lr,
            hyperparameters=changed or None,
            min_examples=parts.min_examples,
            devices=parts.devices,
            settings=settings,
            command=command(),
        )

    run(study, options, results, newcomers=training.newcomers)


def selected(names: list[str] | None) -> tuple[str, ...] | None:
    """The algorithms that were asked for, training alone always among them; None for all that are installed."""
    asked = listed(names)
    if not asked or asked == ("all",):
        return None
    return tuple(dict.fromkeys((BASELINE, *asked)))
