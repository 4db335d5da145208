"""The program: its commands, and what becomes of an error: a line with its number, a hint, an exit code, no traceback."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from freehold.cli.algorithms import algorithms
from freehold.cli.bundle import bundle
from freehold.cli.compare import compare
from freehold.cli.console import interrupted, report_error
from freehold.cli.coordinator import coordinator
from freehold.cli.data import data
from freehold.cli.demo import demo
from freehold.cli.doctor import doctor
from freehold.cli.invocation import remember
from freehold.cli.ledger import budget, ledger
from freehold.cli.login import login
from freehold.cli.node import node
from freehold.cli.simulate import simulate
from freehold.cli.status import status
from freehold.cli.study import study
from freehold.cli.token import token
from freehold.cli.tune import tune
from freehold.errors import FreeholdError


class Commands(TyperGroup):
    """The commands, with errors told as people want to read them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed: reports say the command that repeats them."""
        remember(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of Freehold's becomes its exit code."""
        try:
            return super().invoke(ctx)
        except FreeholdError as error:
            report_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            interrupted(stop)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="freehold",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Personalized federated learning: each client ends with a model of its own, and its data never leaves.",
    epilog="Exit codes: 0 good, 1 refused or degraded, 2 wrong use, unusable data or unreachable, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"freehold {version('freehold')}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


app.command()(demo)
app.command()(compare)
app.command()(simulate)
app.command()(tune)
app.command()(algorithms)
app.command()(bundle)
app.add_typer(data, name="data")
app.add_typer(coordinator, name="coordinator")
app.add_typer(token, name="token")
app.add_typer(node, name="node")
node.command("budget")(budget)
app.add_typer(ledger, name="ledger")
app.add_typer(study, name="study")
app.command()(login)
app.command()(status)
app.command()(doctor)


def main() -> None:
    """Run the command line; what cannot be written to standard output ends it with exit code 2 and a line."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (as long as the program)
    if sys.stdout is None:
        sys.stderr.write("error: standard output is closed.\n")
        sys.exit(2)
    output = _Output(sys.stdout)
    sys.stdout = output.stream
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no ▲ shows ?, and the rest
    try:
        try:
            app(prog_name="freehold")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error is not output.failure:  # of a file, a network, another process
            raise
        _drop_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # whoever read the output has read enough
        sys.stderr.write(f"error: standard output could not be written: {error.strerror}.\n")
        sys.exit(2)


class _Output(io.FileIO):
    """Standard output that remembers how it failed: an OSError does not say of which file it is."""

    def __init__(self, before: TextIO) -> None:
        """`before`: what was written there before, if anything, is written out."""
        before.flush()
        super().__init__(before.fileno(), "wb", closefd=False)
        self.failure: OSError | None = None
        # Unbuffered is what -u asks for, and then nothing is between the text and this file.
        unbuffered = isinstance(before, io.TextIOWrapper) and before.write_through
        self.stream = io.TextIOWrapper(
            self if unbuffered else io.BufferedWriter(self),  # as Python itself does
            encoding=before.encoding,
            line_buffering=before.isatty(),
            write_through=unbuffered,
        )

    def write(self, data: Any) -> int:
        """As a file does it."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _drop_output() -> None:
    """Nothing is left to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
