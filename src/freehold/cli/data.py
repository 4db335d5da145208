"""`freehold data`: what is odd about data, before anything is trained on it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.options import TableOptions, grouped
from freehold.cli.source import load
from freehold.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from freehold.data import Finding, Population

data = typer.Typer(no_args_is_help=True, help="Look at data.")

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

    found = load(source, table)
    population = task_definition(found).population() if isinstance(found, str) else found
    findings = check(population)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n")
    else:
        _show(population, findings)
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


def _show(population: Population, findings: tuple[Finding, ...]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from freehold.cli.console import output, visible

    console = output()
    sizes = population.sizes
    console.print(f"{visible(population.name)}: {len(population.target)} examples of {len(sizes)} clients", style="bold")
    for note in population.notes:
        console.print(Text(visible(note)))
    for client in (None, *population.clients):
        own = [finding for finding in findings if finding.client == client]
        if not own:
            continue
        console.print(Text("\nAll clients" if client is None else f"\n{visible(client)}, {sizes[client]} examples", "bold"))
        for finding in own:
            where = f"{visible(finding.column)}: " if finding.column else ""
            text = Text.assemble((f"{finding.level}  ", _STYLES[finding.level]), where, visible(finding.text))
            console.print(Padding(text, (0, 0, 0, 2)))
    counts = [(sum(finding.level == level for finding in findings), level) for level in _STYLES]
    told = ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for count, level in counts)
    console.print(f"\n{told}." if findings else "\nNothing is odd.")
