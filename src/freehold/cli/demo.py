"""`freehold demo`: four hospitals, their real records, and a page that shows who gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.invocation import command
from freehold.cli.options import RESULT, STUDY, ResultOptions, RunOptions, grouped
from freehold.cli.running import run

if TYPE_CHECKING:
    from freehold.report import Comparison
    from freehold.study import Settings

ROWS = ("local", "fedavg", "fedavg-finetuned", "fedavg-intercept", "ditto")
PAGE = Path("freehold-report.html")


@grouped
def demo(
    options: RunOptions,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Seeds 0 to N-1.", rich_help_panel=STUDY)] = 10,
    report: Annotated[
        Path, typer.Option("--report", metavar="FILE.html", help="Where the page goes.", rich_help_panel=RESULT)
    ] = PAGE,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is standard output.", rich_help_panel=RESULT),
    ] = None,
) -> None:
    """Show what Cleveland, Hungary, Switzerland and VA Long Beach get: alone, shared, and personalized."""

    def study(settings: Settings) -> Comparison:
        from freehold import study

        return study.compare("heart", algorithms=ROWS, seeds=seeds, settings=settings, command=command())

    run(study, options, ResultOptions(json=json, report=report))
