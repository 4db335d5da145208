"""Writes docs/reference/cli.md from the command line itself, so that the page and `--help` cannot differ (`make regold`)."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main
from typer.core import TyperGroup

from freehold.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"

HEAD = """# Command line

`freehold COMMAND --help` prints the same. Tables and findings go to standard output, progress and errors to standard error.

Exit codes: 0 good; 1 refused, or findings that are errors; 2 wrong use, unusable data or a run that cannot go on; 130
interrupted. Each error has a number and [an entry](errors.md). `--json` writes [the report as JSON](report-json.md).
`NO_COLOR` turns colors off; off a terminal, progress is plain lines. An interrupted study is kept under
`$XDG_STATE_HOME/freehold/checkpoints`, or `--checkpoint`, until it is resumed with `--resume` or started anew.
"""


def render() -> str:
    """The whole page."""
    return HEAD + "".join(_sections("freehold", typer.main.get_command(app)))


def _sections(path: str, command: object) -> list[str]:
    lines = [f"\n## `{path}`\n\n{_text(getattr(command, 'help', None) or getattr(command, 'short_help', None) or '')}\n"]
    rows = []
    for param in getattr(command, "params", []):
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts) if name.startswith("-"))
        shown = names or f"`{(param.metavar or param.name or '').upper()}`"
        shown = shown.replace("|", "\\|")
        rows.append(f"| {shown} | {_text(getattr(param, 'help', None) or '')} |")
    if rows:
        lines.append("\n| argument or flag | |\n|---|---|\n" + "\n".join(rows) + "\n")
    if isinstance(command, TyperGroup):
        for name in command.commands:
            lines += _sections(f"{path} {name}", command.commands[name])
    return lines


def _text(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("|", "\\|")).strip()


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
