"""`freehold data`: what is odd about data, before anything is trained on it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.options import TableOptions, grouped, listed
from freehold.cli.source import load
from freehold.errors import BadValue, ColumnMissing, UnknownName, UsageError

if TYPE_CHECKING:
    from freehold.data import Finding, Population

data = typer.Typer(no_args_is_help=True, help="Look at data.")

DECIMAL_COMMA = "decimal comma"  # the way of columns that no flag can help: `freehold.data.problems`
_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


@data.callback()
def _start() -> None:
    pass


@data.command()
@grouped
def check(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE|FOLDER", help="heart, digits, a CSV or Parquet file, a folder of them.")
    ],
    table: TableOptions,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as a JSON list.")] = False,
) -> None:
    """Say in plain words what is odd about each client's data; exit code 1 if something is an error."""
    from freehold.data import check
    from freehold.tasks import task_definition

    found, refused, flags = _readable(source, table)
    definition = task_definition(found if isinstance(found, str) else "tabular")
    population = definition.population() if isinstance(found, str) else found
    # Data without clients of its own is partitioned before anybody counts.
    fewest = definition.min_examples if len(population.clients) > 1 else 1
    findings = (*refused, *check(population, min_examples=fewest))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n")
    else:
        _show(population, findings)
        if flags:
            sys.stdout.write(f"The columns can be read with: {flags}\n")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@data.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data that ships with Freehold: heart.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go, one for each client.")],
) -> None:
    """Write data that ships with Freehold as one CSV file for each client, as nodes would hold it."""
    if name != "heart":
        raise UnknownName(f"No data named {name!r} ships with Freehold as files.", hint="There is heart.")
    for path in write_hospitals(folder):
        sys.stdout.write(f"{path}\n")


@data.command()
def mock(
    source: Annotated[str, typer.Argument(metavar="NAME|SCHEMA", help="A task with a schema, or a schema's TOML file.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE.csv", help="Where the table goes; no file is replaced.")],
    rows: Annotated[int, typer.Option("--rows", min=1, max=10_000_000, metavar="N", help="How many.")] = 300,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Another one makes other rows.")] = 0,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="FILE", help="Learn each column's range or shares from this data: they are told then."),
    ] = None,
) -> None:
    """Make up a table for researchers to try a plan on: the schema's columns and ranges, and nothing of anybody's records."""
    from freehold.cli.console import visible
    from freehold.data import from_files, load_schema
    from freehold.data.mocktable import mock_table
    from freehold.tasks import task_definition

    path = Path(source)
    schema = load_schema(path) if path.suffix == ".toml" or path.is_file() else task_definition(source).schema
    if schema is None:
        raise UsageError(f"The task {source} has no schema.", hint="Give a schema's TOML file.")
    seen = None if like is None else from_files({"data": like}, schema=schema)
    made = mock_table(schema, rows, seed=seed, like=seen)
    try:
        with output.open("xb") as file:
            made.write_csv(file)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.", hint="Give another file; none is replaced.") from None
    if like is not None:
        sys.stderr.write(
            f"warning: the table tells of {visible(str(like))}: for each column the share of gaps, the shares of its values "
            "or the 1st and 99th percentile, and the shares of the labels. Give it only to whom you would tell those.\n"
        )
    sys.stdout.write(f"{visible(str(output))}: {counted(rows, 'row')}, made up; columns are independent of each other.\n")


def write_hospitals(folder: Path) -> list[Path]:
    """The records of the four hospitals, a file each, named as their nodes are."""
    from freehold.data.heart import heart_records

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for hospital, records in heart_records().items():
            written.append(folder / f"{hospital.lower().replace(' ', '-')}.csv")
            records.write_csv(written[-1])
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}.", hint="Give another folder.") from None
    return written


def _readable(source: str, table: TableOptions) -> tuple[str | Population, tuple[Finding, ...], str]:
    """What `load` finds; where columns cannot be used as they are, an error for each, what was found once they are read
    otherwise or left out, and the flags that do so. Raises what no flag can help."""
    from freehold.data import Finding
    from freehold.data.problems import flag, quoted

    refused: list[Finding] = []
    added: dict[str, list[str]] = {"categorical": [], "impute": [], "drop": []}
    unread: list[str] = []
    first: BadValue | None = None
    while True:
        dropped = [*listed(table.drop), *added["drop"], *unread]
        used = {
            way: [name for name in (*listed(getattr(table, way)), *added[way]) if name not in dropped]
            for way in ("categorical", "impute")
        }
        cells = {way: [quoted(names)] if names else None for way, names in used.items()}
        try:
            found = load(
                source,
                replace(
                    table,
                    drop=[quoted(dropped)] if dropped else None,
                    categorical=cells["categorical"],
                    impute=cells["impute"],
                ),
            )
        except BadValue as error:
            first = first or error
            if not error.remedies or {name for names in error.remedies.values() for name in names} <= {*dropped}:
                raise
            for way, names in error.remedies.items():
                (unread if way == DECIMAL_COMMA else added[way]).extend(names)
            refused += [
                Finding(client=None, column=c, level="error", text=f"{line}: {advice}") for c, line, advice in error.lines
            ]
        except ColumnMissing as error:
            raise (first or error) from None  # all features are left out: what was wrong with them says more
        else:
            return found, tuple(refused), " ".join(flag(way, names) for way, names in added.items() if names)


def _show(population: Population, findings: tuple[Finding, ...]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from freehold.cli.console import output, visible

    console = output()
    sizes = population.sizes
    console.print(
        f"{visible(population.name)}: {counted(len(population.target), 'example')} of {counted(len(sizes), 'client')}",
        style="bold",
    )
    for note in population.notes:
        console.print(Text(visible(note)))
    for client in (None, *population.clients):
        own = [finding for finding in findings if finding.client == client]
        if not own:
            continue
        console.print(
            Text("\nAll clients" if client is None else f"\n{visible(client)}, {counted(sizes[client], 'example')}", "bold")
        )
        for finding in own:
            text = Text.assemble((f"{finding.level}  ", _STYLES[finding.level]), visible(finding.text))
            console.print(Padding(text, (0, 0, 0, 2)))
    counts = [(sum(finding.level == level for finding in findings), level) for level in _STYLES]
    told = ", ".join(counted(count, level) for count, level in counts)
    console.print(f"\n{told}." if findings else "\nNothing is odd.")


def counted(number: int, noun: str) -> str:
    """'1 example', '4 examples'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
