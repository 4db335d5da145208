"""`freehold simulate`: one algorithm, or one plan, beside training alone and FedAvg."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from freehold.cli.console import errors
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
from freehold.cli.output import write
from freehold.cli.running import run
from freehold.cli.source import load
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.data import Population
    from freehold.plan import Plan
    from freehold.report import Comparison
    from freehold.study import Settings


PRIVACY = "What privacy costs"


class Unit(StrEnum):
    """Whom noise hides."""

    record = "record"
    client = "client"


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """What is to be shown of noise."""

    epsilon: Annotated[
        list[str] | None,
        typer.Option(
            "--epsilon",
            metavar="E1,E2",
            help="Show what each ε costs: the algorithm again, with so much noise.",
            rich_help_panel=PRIVACY,
        ),
    ] = None
    unit: Annotated[
        Unit | None, typer.Option("--unit", help="Noise for each record (the default) or client.", rich_help_panel=PRIVACY)
    ] = None
    delta: Annotated[
        float | None, typer.Option("--delta", metavar="DELTA", help="δ; 1e-5 if not given.", rich_help_panel=PRIVACY)
    ] = None
    max_norm: Annotated[
        float | None,
        typer.Option("--max-norm", metavar="NORM", help="Clip to this L2 norm; 1 if not given.", rich_help_panel=PRIVACY),
    ] = None


class _Wanted(TypedDict):
    epsilons: tuple[float, ...]
    unit: Literal["record", "client"]
    delta: float | None
    max_norm: float


@grouped
def simulate(
    source: Annotated[str, typer.Argument(metavar="NAME|PLAN.toml|FILE", help="A task, a plan, or a file or folder of data.")],
    table: TableOptions,
    parts: PartitionOptions,
    training: TrainingOptions,
    options: RunOptions,
    results: ResultOptions,
    noise: NoiseOptions,
    algorithm: Annotated[
        str | None,
        typer.Option(
            "--algorithm",
            metavar="NAME",
            help="Which; ditto if not given. NAME+bfloat16 rounds contributions.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="The data of a plan whose task has none.", rich_help_panel=DATA)
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE",
            help="The code that the plan names. It runs here as you, in no sandbox.",
            rich_help_panel=DATA,
        ),
    ] = None,
    write_plan: Annotated[
        Path | None,
        typer.Option(
            "--write-plan",
            metavar="FILE.toml",
            help="Write the plan, before training; run, it gives the same.",
            rich_help_panel=RESULT,
        ),
    ] = None,
) -> None:
    """Simulate one algorithm, or a plan as the federation would run it, beside training alone and FedAvg."""
    from_plan = source.endswith(".toml")
    if from_plan:
        refuse_beside_a_plan(parts, training, algorithm)
    elif data is not None:
        raise UsageError("--data belongs to a plan.", hint="Name the data itself: freehold simulate FILE")
    elif bundle is not None:
        raise UsageError(
            "--bundle belongs to a plan.", hint="freehold study new NAME --bundle FILE --output PLAN.toml makes one."
        )

    wanted = _wanted(noise)

    def study(settings: Settings) -> Comparison:
        from freehold import study
        from freehold.plan import dumps, load_plan
        from freehold.plan.bundle import read_bundle

        if from_plan:
            plan = load_plan(source)
            found = None if data is None else load(data, table)
        else:
            found = load(source, table)
            plan = _plan(found, algorithm or "ditto", parts, training)
        if training.seeds:
            plan = study.repeated(plan, training.seeds)
        if write_plan is not None:
            write(write_plan, dumps(plan))
            errors().print(f"Written: {write_plan}")
        code = None if bundle is None else read_bundle(bundle)
        noised = None if wanted is None else study.Noised(**wanted)
        population = None if isinstance(found, str) else found
        return study.simulate(plan, population, noised=noised, settings=settings, command=command(), bundle=code)

    run(study, options, results, newcomers=training.newcomers, also=write_plan)


def _wanted(noise: NoiseOptions) -> _Wanted | None:
    """What `Noised` is told; raises UsageError for what is no ε, and for what has no meaning without one."""
    epsilon, unit, delta, max_norm = noise.epsilon, noise.unit, noise.delta, noise.max_norm
    if not epsilon:
        alone = {"--unit": unit, "--delta": delta, "--max-norm": max_norm}
        if named := [flag for flag, value in alone.items() if value is not None]:
            raise UsageError(f"{named[0]} has no meaning without --epsilon.", hint="For example --epsilon 1,4,8")
        return None
    try:
        found = tuple(float(text) for text in listed(epsilon))
    except ValueError:
        raise UsageError(f"--epsilon {','.join(epsilon)} is no list of numbers.", hint="For example --epsilon 1,4,8") from None
    if not all(0 < each < math.inf for each in (*found, 1.0 if max_norm is None else max_norm)) or not 0 < (delta or 0.5) < 1:
        raise UsageError(
            "--epsilon and --max-norm must be above 0, and --delta between 0 and 1.", hint="For example --epsilon 1,4,8"
        )
    kind: Literal["record", "client"] = "client" if unit is Unit.client else "record"
    return {"epsilons": found, "unit": kind, "delta": delta, "max_norm": 1.0 if max_norm is None else max_norm}


def _plan(found: str | Population, algorithm: str, parts: PartitionOptions, training: TrainingOptions) -> Plan:
    from freehold import study

    return study.make_plan(
        found,
        algorithm,
        clients=parts.clients,
        partition=parts.partition,
        rounds=training.rounds,
        epochs=training.epochs,
        batch_size=training.batch_size,
        lr=training.lr,
        hyperparameters=settings_of(training.set) or None,
        min_examples=parts.min_examples,
        devices=parts.devices,
        repeats=training.seeds or study.SEEDS,
    )


def refuse_beside_a_plan(parts: PartitionOptions, training: TrainingOptions, algorithm: object) -> None:
    """Raise UsageError for an option that says what the plan says."""
    given = {
        "--algorithm": algorithm,
        "--clients": parts.clients,
        "--partition": parts.partition,
        "--min-examples": parts.min_examples,
        "--devices": parts.devices,
        "--rounds": training.rounds,
        "--epochs": training.epochs,
        "--batch-size": training.batch_size,
        "--lr": training.lr,
        "--set": training.set,
    }
    named = [flag for flag, value in given.items() if value]
    if named:
        raise UsageError(f"{named[0]} is the plan's to say.", hint=f"Change the plan, and leave out {', '.join(named)}.")
