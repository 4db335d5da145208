"""Studies from Python: `compare` every algorithm on one's data, `simulate` a plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec
import polars as pl

from freehold.data import Population, Problem, Schema, from_csv, from_files, from_frame, from_parquet, load_schema, partition
from freehold.data.frames import PandasFrame
from freehold.errors import NotAsynchronous, UsageError, near_miss
from freehold.plan import Contribution, Plan, Scalar, Training, load_plan
from freehold.report import Comparison
from freehold.study.compare import run_comparison
from freehold.study.noised import Noised, check_allowed, cost_of, noised_trials
from freehold.study.noised import said_of as cost_said
from freehold.study.said import beside_published, call, choice, oddities, title_of
from freehold.study.settings import Settings, Trial
from freehold.study.source import FlambySplit, RepeatedSplits
from freehold.study.spec import with_spec
from freehold.study.traveling import costs_of_rounding, said, variant
from freehold.study.trials import Settings as Hyperparameters
from freehold.study.trials import flamby_trials, plan_for, repeated, trials_for, trials_of
from freehold.study.watch import watch
from freehold.tasks import TaskDefinition, rates, task_definition, under
from freehold.tasks.bundled import definition_of
from freehold.tasks.flamby import SEEDS as FLAMBY_SEEDS

SEEDS = 5
"""Splits of a study that does not say how many."""

Data = str | Path | pl.DataFrame | PandasFrame | Population


class Reading(TypedDict, total=False):
    """How a table is read; the keywords of `compare`, `simulate` and `make_plan` that are about the user's data."""

    client: str | None
    """The column that says whose row it is."""
    target: str | None
    """The column to predict."""
    drop: Sequence[str]
    categorical: Sequence[str]
    impute: Sequence[str]
    problem: Problem | None
    schema: Schema | str | Path | None
    split: str | None
    group: str | None
    time: str | None


def read(data: Data, *, test: str | Path | None = None, **reading: Unpack[Reading]) -> tuple[TaskDefinition, Population]:
    """The task and the population of a task's name, a CSV or Parquet file, a folder with one file per client, or a frame.

    `test` is a second file, with the test examples. Raises UsageError for a keyword that has no meaning for this data, and
    what the readers of `freehold.data` raise.
    """
    given = [name for name, value in (*reading.items(), ("test", test)) if value]
    if isinstance(data, Population) or (isinstance(data, str) and not _is_path(data)):
        if given:
            raise UsageError(
                f"{given[0]} has no meaning for data that brings its own columns.", hint=f"Leave out {', '.join(given)}."
            )
        if isinstance(data, Population):
            return _tabular(data), data
        definition = task_definition(data)
        return definition, definition.population()
    schema = reading.get("schema")
    columns: dict[str, Any] = {**reading, "schema": load_schema(schema) if isinstance(schema, str | Path) else schema}
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            if reading.get("client") or test:
                raise UsageError("In a folder each file is a client, with splits of its own.", hint="Leave out client and test.")
            found = from_files(path, **{k: v for k, v in columns.items() if k != "client"})
        else:
            source = from_parquet if path.suffix in (".parquet", ".pq") else from_csv
            found = source(path, test=test, **columns)
    else:
        if test:
            raise UsageError("A test file belongs to a file.", hint="Mark the test rows in a column: split='…'.")
        found = from_frame(data, **columns)
    return _tabular(found), found


def compare(
    data: Data,
    *,
    algorithms: Sequence[str] | str | None = None,
    seeds: int | Sequence[int] | None = None,
    protocol: str | None = None,
    clients: int | None = None,
    partition: str | None = None,
    rounds: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    hyperparameters: Hyperparameters | None = None,
    min_examples: int | None = None,
    devices: bool = False,
    test: str | Path | None = None,
    settings: Settings | None = None,
    command: str | None = None,
    **reading: Unpack[Reading],
) -> Comparison:
    """Run algorithms side by side, with training alone as the baseline; the result shows itself in a notebook, and
    `result.save("report.html")` writes it.

    `data` is a task's name ("heart", "digits"), a file or folder, a DataFrame or a Population. `algorithms`: one name or
    several, training alone always among them; all installed ones by default; "fedavg+bfloat16" is FedAvg with contributions
    rounded to bfloat16. `seeds`: how many splits, or which; 5 by default. `protocol`: "flamby" for the published table of
    heart. `clients` and `partition` ("dirichlet:0.1") make clients of data that has none. `hyperparameters`: {"ditto":
    {"lam": 2}}; "*" is for all. `reading`: see Reading. Raises a FreeholdError that says what to do.
    """
    refuse_unknown(reading, compare)
    command = command or call(
        "compare",
        data,
        {
            **reading,
            "algorithms": algorithms,
            "seeds": seeds,
            "protocol": protocol,
            "clients": clients,
            "partition": partition,
            "rounds": rounds,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "hyperparameters": hyperparameters,
            "min_examples": min_examples,
            "devices": devices,
            "test": test,
        },
    )
    settings = settings or Settings(listener=watch())
    if protocol is not None:
        if protocol != "flamby" or data != "heart":
            raise UsageError(
                f"There is no protocol {protocol!r} for {data}.", hint="The published one is: heart, protocol flamby."
            )
        changed = (algorithms, clients, partition, rounds, epochs, batch_size, lr, hyperparameters)
        if any(value is not None for value in changed):
            raise UsageError("The flamby protocol is fixed, and its settings are published.", hint="Leave out what changes it.")
        return _flamby(seeds_of(seeds, FLAMBY_SEEDS), settings, command)
    definition, population = read(data, test=test, **reading)
    definition = adjusted(definition, population, lr, min_examples, devices)
    options = options_of(clients, partition)
    population = partitioned(population, definition, options)
    asked = (algorithms,) if isinstance(algorithms, str) else algorithms
    trials = trials_for(
        definition,
        None if asked is None else tuple(dict.fromkeys(("local", *asked))),
        hyperparameters=hyperparameters,
        training=training_of(definition.training, rounds, epochs, batch_size),
        options=options,
    )
    return _run(definition, population, trials, seeds_of(seeds, range(SEEDS)), settings, command, strict=asked is not None)


def simulate(
    plan: Plan | str | Path,
    data: Data | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    noised: Noised | None = None,
    settings: Settings | None = None,
    command: str | None = None,
    bundle: bytes | None = None,
    **reading: Unpack[Reading],
) -> Comparison:
    """Run a plan, or the file of one, as the federation would: its companions and its algorithm.

    `noised`: besides, the algorithm with the noise that each ε asks for, to see what that costs.

    `data`: where the task has none of its own. `seeds`: how many, from the plan's `training.seed` on, or which; by
    default as many as the plan's `repeats`. `bundle`: the code that the plan names; it runs in this process, in no sandbox.
    """
    refuse_unknown(reading, simulate)
    source = plan
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    definition, population = of_plan(plan, data, bundle, **reading)
    if noised is not None and plan.privacy.unit != "none":
        raise UsageError("The plan says how much noise there is.", hint='Leave out --epsilon, or say unit = "none" in the plan.')
    definition = under(definition, plan if noised is None else noised.plan(plan, 1.0))
    population = partitioned(population, definition, plan.task.options)
    first = plan.training.seed
    count = plan.repeats if seeds is None else seeds
    asked = tuple(range(first, first + count)) if isinstance(count, int) and count > 0 else seeds_of(count, ())
    command = command or _simulate_call(source, data, {"seeds": seeds, **reading})
    settings = settings or Settings(listener=watch())
    prepared = source_of(definition, population).prepared(asked[0])
    trials = trials_of(plan)
    if noised is None:
        cost = cost_of(trials[-1].plan, trials[-1].name, prepared)
    else:
        trials, cost = noised_trials(noised, trials, prepared)
    check_allowed(definition, prepared, trials)
    found = _run(definition, population, trials, asked, settings, command, strict=True, lead=plan.algorithm.name)
    found = replace(found, privacy=cost)
    return replace(found, notes=(*found.notes, *said(Contribution(dtype=plan.contribution.dtype)), *cost_said(found)))


def of_plan(
    plan: Plan, data: Data | None, bundle: bytes | None = None, **reading: Unpack[Reading]
) -> tuple[TaskDefinition, Population]:
    """The task of a plan and the data that it is simulated on; `data` where the task has none of its own."""
    if plan.round.mode == "asynchronous":
        raise NotAsynchronous(
            "The simulator has no clock, so there is no order in which contributions of asynchronous rounds would arrive.",
            hint='Try the plan with mode = "synchronous" in [round] and without buffer; run this one with `freehold study run`.',
        )
    definition = definition_of(plan, bundle)
    if data is not None:
        _, population = read(data, **reading)
    elif definition.load is not None:
        population = definition.population()
    else:
        raise UsageError(
            f"The plan's task, {definition.name}, has no data of its own.",
            hint="Say --data FILE, with --client-column and --target and all other flags that the data was read with "
            "(in Python: data, client=, target= and so on).",
        )
    return adjusted(definition, population, None, plan.min_examples, plan.clients == "devices"), population


def make_plan(
    data: Data,
    algorithm: str,
    *,
    clients: int | None = None,
    partition: str | None = None,
    rounds: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    hyperparameters: Hyperparameters | None = None,
    min_examples: int | None = None,
    devices: bool = False,
    seed: int = 0,
    repeats: int = 1,
    **reading: Unpack[Reading],
) -> Plan:
    """The plan of an algorithm on a task or on one's data, with its contribution spec: what may leave a node, and no more.

    `repeats`: how many seeds it is run with, from `seed` on.
    """
    refuse_unknown(reading, make_plan)
    definition, population = read(data, **reading)
    definition = adjusted(definition, population, lr, min_examples, devices)
    options = options_of(clients, partition)
    population = partitioned(population, definition, options)
    training = msgspec.structs.replace(training_of(definition.training, rounds, epochs, batch_size), seed=seed)
    companions = [name for name in ("local", "fedavg") if name != variant(algorithm)[0]]
    plan = plan_for(
        definition, algorithm, hyperparameters=hyperparameters, training=training, options=options, companions=companions
    )
    return with_spec(repeated(plan, repeats), definition, source_of(definition, population).prepared(seed))


def _flamby(seeds: Sequence[int], settings: Settings, command: str) -> Comparison:
    definition = task_definition("heart-flamby")
    trials = flamby_trials(definition)
    found = run_comparison(
        definition, FlambySplit(), trials, seeds=seeds, settings=settings, command=command, baseline="Local", strict=True
    )
    return replace(found, notes=(*found.notes, beside_published(found)))


def _run(
    definition: TaskDefinition,
    population: Population,
    trials: Sequence[Trial],
    seeds: Sequence[int],
    settings: Settings,
    command: str,
    strict: bool,
    lead: str = "",
) -> Comparison:
    odd = () if definition.load else oddities(population, min_examples=1)
    found = run_comparison(
        definition,
        source_of(definition, population),
        trials,
        seeds=seeds,
        settings=settings,
        command=command,
        notes=population.notes,
        strict=strict,
    )
    warnings = tuple(dict.fromkeys((*odd, *found.warnings)))
    return replace(found, warnings=warnings, notes=(*found.notes, *choice(found), *costs_of_rounding(found)), asked=lead)


def source_of(definition: TaskDefinition, population: Population) -> RepeatedSplits:
    """The population, split anew for each seed as the task says."""
    return RepeatedSplits(
        population=population,
        rule=definition.split,
        statistics=definition.statistics,
        min_examples=definition.min_examples,
        kind=definition.clients,
    )


def _tabular(population: Population) -> TaskDefinition:
    definition = task_definition("tabular")
    return replace(definition, title=title_of(population), metric="accuracy" if population.classes else "r2")


def adjusted(
    definition: TaskDefinition, population: Population, lr: float | None, min_examples: int | None, devices: bool
) -> TaskDefinition:
    """The task as this data and what was asked have it."""
    return replace(
        definition,
        metric="accuracy" if population.classes else "r2",
        hyperparameters=definition.hyperparameters if lr is None else rates(lr),
        min_examples=definition.min_examples if min_examples is None else min_examples,
        clients="devices" if devices else definition.clients,
    )


def options_of(clients: int | None, partition: str | None) -> dict[str, Scalar]:
    """What a plan says of the clients that are to be made of the data."""
    if (clients is None) != (partition is None):
        raise UsageError("clients and partition belong together.", hint="For instance --clients 20 --partition dirichlet:0.1.")
    return {} if clients is None or partition is None else {"clients": clients, "partition": partition}


def partitioned(population: Population, definition: TaskDefinition, options: dict[str, Scalar]) -> Population:
    """The population with the clients that were asked for; UsageError where there would be only one."""
    if "partition" in options:
        return partition(
            population,
            str(options["partition"]),
            clients=int(options["clients"]),
            seed=0,
            min_examples=definition.min_examples,
        )
    if len(population.clients) < 2:
        raise UsageError(
            f"{population.name} has one client, so there is nobody to learn with.",
            hint="Make clients of it: --clients 20 --partition dirichlet:0.1.",
        )
    return population


def training_of(training: Training, rounds: int | None, epochs: int | None, batch_size: int | None) -> Training:
    """The training, changed by what is not None."""
    changed = {"rounds": rounds, "batch_size": batch_size, "epochs": epochs}
    given = {k: v for k, v in changed.items() if v is not None}
    if "epochs" in given:
        given["steps"] = None  # type: ignore[assignment]
    return msgspec.structs.replace(training, **given)


def seeds_of(seeds: int | Sequence[int] | None, default: Sequence[int]) -> tuple[int, ...]:
    """The seeds: how many, which, or the default."""
    if seeds is None:
        return tuple(default)
    if not isinstance(seeds, int):
        return tuple(seeds)
    if seeds < 1:
        raise UsageError(f"{seeds} seeds were asked for.", hint="Ask for at least one.")
    return tuple(default)[:seeds] if default is FLAMBY_SEEDS and seeds <= len(default) else tuple(range(seeds))


def refuse_unknown(reading: Mapping[str, object], function: Callable[..., object]) -> None:
    """Raise UsageError for a keyword that nobody reads: `**reading` would take any."""
    known = {*Reading.__annotations__, *inspect.signature(function).parameters} - {"reading"}
    unknown = [name for name in reading if name not in known]
    if unknown:
        raise UsageError(
            f"{function.__name__} has no argument {unknown[0]!r}.",
            hint=near_miss(unknown[0], known),
        )


def _simulate_call(plan: Plan | str | Path, data: Data | None, given: Mapping[str, object]) -> str:
    shown = "plan" if isinstance(plan, Plan) else repr(str(plan))
    rest = "" if data is None else call("", data, given).removeprefix("freehold.(").removesuffix(")")
    return f"freehold.simulate({', '.join(part for part in (shown, rest) if part)})"


def _is_path(text: str) -> bool:
    return "/" in text or "." in text or Path(text).exists()
