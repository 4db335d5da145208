"""The options that several commands have, each said once: a group is a frozen dataclass, and a command takes it whole."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from freehold.errors import UsageError

DATA, STUDY, RUN, RESULT = "Data", "Study", "How to run", "Results"  # panels of the help text


class ProblemName(StrEnum):
    """What kind of target it is."""

    classification = "classification"
    regression = "regression"


class EngineName(StrEnum):
    """What runs a cohort."""

    vector = "vector"
    loop = "loop"
    ray = "ray"


class ExecutorName(StrEnum):
    """How the vector engine computes a chunk of clients."""

    auto = "auto"
    loop = "loop"
    stacked = "stacked"
    lowrank = "lowrank"
    vmap = "vmap"


class DeviceName(StrEnum):
    """What computes."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a file of the user's is to be read."""

    client_column: Annotated[
        str | None,
        typer.Option("--client-column", metavar="COLUMN", help="Column that says whose row it is.", rich_help_panel=DATA),
    ] = None
    target: Annotated[str | None, typer.Option("--target", metavar="COLUMN", help="Column to predict.", rich_help_panel=DATA)] = (
        None
    )
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="A,B", help="Columns to leave out; repeatable.", rich_help_panel=DATA)
    ] = None
    categorical: Annotated[
        list[str] | None,
        typer.Option("--categorical", metavar="A,B", help="Columns that are categories; repeatable.", rich_help_panel=DATA),
    ] = None
    impute: Annotated[
        list[str] | None,
        typer.Option("--impute", metavar="A,B", help="Columns in which cells may be missing; repeatable.", rich_help_panel=DATA),
    ] = None
    problem: Annotated[
        ProblemName | None, typer.Option("--problem", help="Kind of target, if it is not to be inferred.", rich_help_panel=DATA)
    ] = None
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE.toml", help="Schema of the columns.", rich_help_panel=DATA)
    ] = None
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="COLUMN", help="Column of train, validation and test.", rich_help_panel=DATA),
    ] = None
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Column of what must not be torn by a split.", rich_help_panel=DATA),
    ] = None
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="COLUMN", help="Column to sort by: test comes after training.", rich_help_panel=DATA),
    ] = None
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="Second file, with the test examples.", rich_help_panel=DATA)
    ] = None


@dataclass(frozen=True, kw_only=True)
class PartitionOptions:
    """Clients for data that has none, and which clients count."""

    clients: Annotated[
        int | None, typer.Option("--clients", min=1, metavar="N", help="Clients to make with --partition.", rich_help_panel=DATA)
    ] = None
    partition: Annotated[
        str | None,
        typer.Option(
            "--partition",
            metavar="SPEC",
            help="dirichlet:ALPHA, classes:K, quantity:ALPHA, shift:S or iid, for data without clients.",
            rich_help_panel=DATA,
        ),
    ] = None
    min_examples: Annotated[
        int | None,
        typer.Option("--min-examples", min=1, metavar="N", help="Fewest examples of a client.", rich_help_panel=DATA),
    ] = None
    devices: Annotated[
        bool,
        typer.Option("--devices", help="Clients are devices: small ones are skipped and counted.", rich_help_panel=DATA),
    ] = False


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What differs from the task's own settings."""

    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, metavar="N", help="Rounds of training.", rich_help_panel=STUDY)
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, metavar="N", help="Passes over a client's data in a round.", rich_help_panel=STUDY),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, metavar="N", help="Examples in a batch.", rich_help_panel=STUDY)
    ] = None
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="RATE", help="Local learning rate of all algorithms.", rich_help_panel=STUDY),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="ALGORITHM.NAME=VALUE",
            help="One hyper-parameter, for example ditto.lam=0.5; repeatable.",
            rich_help_panel=STUDY,
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, max=10_000, metavar="N", help="Seeds 0 to N-1; 5 if not given.", rich_help_panel=STUDY),
    ] = None
    newcomers: Annotated[
        int,
        typer.Option(
            "--newcomers", min=0, metavar="N", help="Clients that never take part, reported apart.", rich_help_panel=STUDY
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How it is computed; nothing here changes the result, but for rounding."""

    engine: Annotated[
        EngineName, typer.Option("--engine", help="All clients at once, one by one, or on Ray.", rich_help_panel=RUN)
    ] = EngineName.vector
    executor: Annotated[
        ExecutorName,
        typer.Option("--executor", help="How the vector engine computes; auto chooses what is fastest.", rich_help_panel=RUN),
    ] = ExecutorName.auto
    device: Annotated[DeviceName, typer.Option("--device", help="What to compute on.", rich_help_panel=RUN)] = DeviceName.cpu
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which executor was chosen, and why; it is in --json.", rich_help_panel=RUN)
    ] = False
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            metavar="N",
            help="Processes, each for whole rows and seeds; as many as cores if not given.",
            rich_help_panel=RUN,
        ),
    ] = None
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            help="Processes (on Ray: workers) that divide the clients of one row and seed after the other.",
            rich_help_panel=RUN,
        ),
    ] = None
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="The Ray cluster; auto finds one here.", rich_help_panel=RUN),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FOLDER",
            help="Where an interrupted run is kept; ~/.local/state/freehold/checkpoints if not given.",
            rich_help_panel=RUN,
        ),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=RUN)] = False
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FOLDER",
            help="Write each client's own model, as safetensors, to ROW/seed-N/CLIENT.safetensors in an empty folder.",
            rich_help_panel=RESULT,
        ),
    ] = None
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="WHERE", help="mlflow:URI or tensorboard:FOLDER; repeatable.", rich_help_panel=RUN),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is written besides the tables on the terminal."""

    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is standard output.", rich_help_panel=RESULT),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write the report as one web page.", rich_help_panel=RESULT),
    ] = None


def listed(texts: Sequence[str] | None) -> tuple[str, ...]:
    """["a,b", "c"] as ("a", "b", "c"); a name with a comma or a line break in it stands in double quotes.

    Raises UsageError for what is no such list.
    """
    try:
        rows = [next(csv.reader([text], skipinitialspace=True), []) for text in texts or ()]
    except csv.Error as error:
        raise UsageError(f"{list(texts or ())} is no list of names: {error}.", hint="Separate names by commas: A,B") from None
    return tuple(name.strip() for row in rows for name in row if name.strip())


def settings_of(texts: Sequence[str] | None) -> dict[str, dict[str, bool | int | float | str]]:
    """["ditto.lam=0.5"] as {"ditto": {"lam": 0.5}}; raises UsageError for what is not of that form."""
    found: dict[str, dict[str, bool | int | float | str]] = {}
    for text in texts or ():
        where, equals, value = text.partition("=")
        algorithm, dot, name = where.rpartition(".")
        if not (equals and dot and algorithm and name and value):
            raise UsageError(f"--set {text} has not the form ALGORITHM.NAME=VALUE.", hint="For example --set ditto.lam=0.5")
        found.setdefault(algorithm.strip(), {})[name.strip()] = _scalar(value.strip())
    return found


def _scalar(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses are options of their own: one for each field."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            own = get_type_hints(kind, include_extras=True)
            parameters += [_parameter(f.name, own[f.name], f.default) for f in fields(kind)]
        else:
            parameters.append(_parameter(parameter.name, kind, parameter.default))

    @wraps(command)
    def run(**given: Any) -> None:
        parts = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **parts)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    absent = default is MISSING or default is inspect.Parameter.empty
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=inspect.Parameter.empty if absent else default
    )
