"""`freehold algorithms`: what is installed, what it is and what it costs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.core import AlgorithmEntry, Hyperparameter


def algorithms(
    as_json: Annotated[bool, typer.Option("--json", help="A list, one object per algorithm.")] = False,
    explain: Annotated[str | None, typer.Option("--explain", metavar="NAME", help="All about one algorithm.")] = None,
) -> None:
    """List the algorithms that are installed, with what each costs."""
    if explain and as_json:
        raise UsageError("--json lists all algorithms, --explain is about one.", hint="Give one of them.")
    from freehold.core import algorithm_entry, algorithm_names

    if explain:
        _explain(algorithm_entry(explain))
        return
    entries = [algorithm_entry(name) for name in algorithm_names()]
    if as_json:
        sys.stdout.write(
            json.dumps([_described(entry) for entry in entries], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
    else:
        _table(entries)


def _table(entries: list[AlgorithmEntry]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from freehold.algorithms import costs
    from freehold.cli.console import output

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("algorithm", no_wrap=True)
    table.add_column("what it is")
    table.add_column("upload, models", justify="right", width=7)
    table.add_column("compute, FedAvg = 1", justify="right", width=10)
    for entry in entries:
        cost = costs(entry, **_required(entry))
        table.add_row(Text(entry.name, "bold"), Text(_first(entry.summary)), f"{cost.upload:.3g}", f"{cost.compute:.2g}")
    console = output()
    console.print(table)
    console.print("\nAll about one: freehold algorithms --explain NAME. Measured on a network of 34,506 parameters.")


def _explain(entry: AlgorithmEntry) -> None:
    from freehold.algorithms import costs
    from freehold.cli.console import output

    console = output()
    console.print(f"{entry.name}, of the package {entry.package}\n", style="bold")
    console.print(f"{entry.citation}\n\n{entry.explanation}\n")
    if entry.hyperparameters:
        console.print("Hyper-parameters", style="bold")
        for each in entry.hyperparameters.values():
            console.print(f"  {each.name}: {_words(each)}")
        console.print()
    cost = costs(entry, **_required(entry))
    console.print("Costs of a round", style="bold")
    console.print(
        f"  down {cost.download:.3g}, up {cost.upload:.3g} models; server keeps {cost.server:.3g}, client {cost.personal:.3g}"
    )
    console.print(
        f"  gradients per step {cost.gradients:.3g}; compute {cost.compute:.3g}, adapting {cost.adapting:.3g} rounds of FedAvg"
    )
    console.print(f"  sends besides: {', '.join(cost.statistics) or 'nothing'}")
    console.print(f"  secure aggregation: {_yes(cost.secure_aggregation)}; record-level privacy: {_yes(cost.record_privacy)}")


def _described(entry: AlgorithmEntry) -> dict[str, object]:
    from freehold.algorithms import costs

    return {
        "name": entry.name,
        "summary": entry.summary,
        "citation": entry.citation,
        "package": entry.package,
        "hyperparameters": [_hyperparameter(each) for each in entry.hyperparameters.values()],
        "costs": asdict(costs(entry, **_required(entry))),
    }


def _hyperparameter(each: Hyperparameter) -> dict[str, object]:
    between = each.between
    bounds = None if between is None else {"low": _finite(between.low), "high": _finite(between.high), "above": between.above}
    return {
        "name": each.name,
        "type": each.kind.__name__,
        "default": each.default,
        "required": each.required,
        "range": bounds,
        "choices": list(each.choices),
    }


def _words(each: Hyperparameter) -> str:
    start = "must be given" if each.required else f"{'by a rule' if each.default is None else each.default} by default"
    bounds = "" if each.between is None else f", {each.between}"
    choices = f", one of {', '.join(each.choices)}" if each.choices else ""
    return f"{each.kind.__name__}, {start}{bounds}{choices}"


def _required(entry: AlgorithmEntry) -> dict[str, float]:
    """A value for what has no default (learning rates); what is counted does not depend on it."""
    return {each.name: 0.01 for each in entry.hyperparameters.values() if each.required and each.kind is float}


def _first(summary: str) -> str:
    return summary.split(". ")[0].removesuffix(".")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _yes(value: bool) -> str:
    return "yes" if value else "no"
