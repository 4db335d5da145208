"""What the first argument names: a task that ships with data, or a file or folder of the user's."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.cli.options import TableOptions, listed
from freehold.errors import Unreadable, UsageError

if TYPE_CHECKING:
    from freehold.data import Population


def load(source: str, table: TableOptions) -> str | Population:
    """The name of a task as it is, or the population of a file or folder.

    Raises UsageError for an option that would be ignored, and what reading raises.
    """
    path = Path(source)
    if not _is_path(source):
        _refuse(table, source, {field.name for field in fields(table)}, "brings its own columns")
        return source
    if not os.path.exists(path):
        raise Unreadable(
            f"There is no file or folder {source[:200]}.", hint="Check the path; names of tasks have no dot and no slash."
        )
    if path.is_dir():
        _refuse(table, source, {"client_column", "test"}, "is a folder, in which each file is a client")
    from freehold import study

    _, population = study.read(
        path,
        client=table.client_column,
        target=table.target,
        drop=listed(table.drop),
        categorical=listed(table.categorical),
        impute=listed(table.impute),
        problem=table.problem.value if table.problem else None,
        schema=table.schema,
        split=table.split,
        group=table.group,
        time=table.time,
        test=table.test,
    )
    return population


def _is_path(source: str) -> bool:
    return "/" in source or "." in source or os.path.exists(source)


def _refuse(table: TableOptions, source: str, names: set[str], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in sorted(names) if getattr(table, name)]
    if given:
        raise UsageError(f"{given[0]} has no meaning here: {source} {why}.", hint=f"Leave out {', '.join(given)}.")
