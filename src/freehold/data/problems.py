"""Everything that keeps a table from being used, gathered into one error that says how to make it work."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from freehold.errors import BadValue

FEW_CATEGORIES = 50


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a column: how many cells, where the first one stands, and what stands there if it is text."""

    column: str
    kind: Literal["missing", "text", "infinite", "flag", "dates", "nested", "constant vocabulary"]
    count: int
    rows: int
    place: str  # "line 5 of a.csv"
    token: str = ""
    distinct: int = 0

    def line(self) -> str:
        """A line of the error's list."""
        of = f"{self.count} of {self.rows} cells"
        if self.kind == "missing":
            return f"{self.column}: missing in {of}, first in {self.place}"
        if self.kind == "text":
            kind = "text" if not _is_decimal_comma(self.token) else "a number with a decimal comma"
            values = f"; {self.distinct} distinct values" if self.count >= self.rows / 2 else ""
            return f"{self.column}: {kind} in {of}, first {self.token!r} in {self.place}{values}"
        if self.kind == "infinite":
            return f"{self.column}: an infinite number in {of}, first in {self.place}"
        if self.kind == "flag":
            return f"{self.column}: neither 0 nor 1 in {of}, first in {self.place}"
        if self.kind == "constant vocabulary":
            return f"{self.column}: {self.distinct} categories would make {self.distinct} features"
        return f"{self.column}: holds {self.kind}, not numbers"

    def remedy(self) -> Literal["impute", "categorical", "drop", "mend", "decimal comma"]:
        """What would make the column usable."""
        if self.kind == "missing":
            return "impute"
        if self.kind in ("infinite", "flag"):
            return "mend"
        if self.kind == "text" and _is_decimal_comma(self.token):
            return "decimal comma"
        if self.kind == "text" and self.count < self.rows / 2:
            return "mend"
        few = 0 < self.distinct <= FEW_CATEGORIES and self.distinct < self.rows / 2
        return "categorical" if self.kind == "text" and few else "drop"


def refuse(problems: list[Problem], *, source: str, features: int, declared: bool) -> BadValue:
    """The error that names every problem, and the flags that make the table usable."""
    columns = sorted({problem.column for problem in problems}, key=[problem.column for problem in problems].index)
    head = f"{len(columns)} of {features} feature columns of {source} cannot be used as they are:"
    lines = [head, *(f"  {problem.line()}" for problem in problems)]
    if declared:
        hint = "The schema declares these columns: mend the cells, or let the schema's `missing` list what means unknown."
        return BadValue("\n".join(lines), hint=hint)
    ways: dict[str, list[str]] = {"categorical": [], "impute": [], "drop": [], "mend": [], "decimal comma": []}
    for column in columns:
        remedies = {problem.remedy() for problem in problems if problem.column == column}
        whole = next((way for way in ("drop", "decimal comma", "mend") if way in remedies), None)
        for remedy in [whole] if whole else sorted(remedies):
            ways[remedy].append(column)
    left_out = [*ways["drop"], *ways["mend"]]
    said = {"categorical": ways["categorical"], "impute": ways["impute"], "drop": left_out}
    error = BadValue("\n".join(lines), hint=_hint(said, ways, features))
    error.remedies = {way: tuple(names) for way, names in {**said, "decimal comma": ways["decimal comma"]}.items() if names}
    error.lines = tuple((problem.column, problem.line(), _advice(problem.column, ways)) for problem in problems)
    return error


def flag(way: str, names: Sequence[str]) -> str:
    """'--categorical sex,smoker', as a shell takes it."""
    return f"--{way} {shlex.quote(quoted(names))}"


def quoted(names: Sequence[str]) -> str:
    """Names as one text with commas between them; a name with a comma stands in double quotes."""
    return ",".join('"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name for name in names)


def _advice(column: str, ways: Mapping[str, Sequence[str]]) -> str:
    if column in ways["decimal comma"]:
        return "write the file with decimal points."
    flags = " ".join(flag(way, [column]) for way in ("categorical", "impute") if column in ways[way])
    if flags:
        return f"add {flags}"
    return f"{'mend these cells, or ' if column in ways['mend'] else ''}leave it out: {flag('drop', [column])}"


def _hint(said: Mapping[str, Sequence[str]], ways: Mapping[str, Sequence[str]], features: int) -> str:
    parts = []
    commas = ways["decimal comma"]
    if commas:
        parts.append(
            f"Columns {', '.join(commas)} have decimal commas: write the file with decimal points, for example by "
            "pandas.read_csv(FILE, sep=';', decimal=',').to_csv(NEW, index=False)."
        )
    flags = " ".join(flag(way, names) for way, names in said.items() if names)
    python = ", ".join(f"{way}={list(names)!r}" for way, names in said.items() if names)
    mend = f", or mend {', '.join(ways['mend'])}" if ways["mend"] else ""
    if len(said["drop"]) >= features:
        parts.append(f"Give a table with usable features{mend}.")
    elif flags:
        parts.append(f"Add {flags} (in Python: {python}){mend}.")
    return " ".join(parts)


def _is_decimal_comma(token: str) -> bool:
    whole, comma, rest = token.partition(",")
    return bool(comma) and whole.lstrip("+-").isdigit() and rest.isdigit()
