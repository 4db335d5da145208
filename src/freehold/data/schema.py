"""A schema: what a task expects of the data. Columns, types, units, ranges, categories, missing codes; a TOML file."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from freehold.errors import SchemaError, UnknownKey, Unreadable, near_miss

if TYPE_CHECKING:
    from freehold.data.population import Population

ColumnKind = Literal["number", "category", "flag"]
TargetKind = Literal["class", "number"]
_KINDS: dict[str, ColumnKind] = {"number": "number", "category": "category", "flag": "flag"}
_TARGET_KINDS: dict[str, TargetKind] = {"class": "class", "number": "number"}
Code = float | str
"""A missing code as it stands in the data: -9, "?", or "" for an empty cell."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One feature. A flag is 0 or 1; a category is one of `categories`, compared as text ("1.0" is "1")."""

    name: str
    kind: ColumnKind
    unit: str = ""
    low: float | None = None  # smallest plausible number, in `unit`
    high: float | None = None
    categories: tuple[str, ...] = ()  # the whole vocabulary, in the order of the one-hot features
    missing: tuple[Code, ...] = ()  # cells that mean "unknown"; any code admits empty cells as well
    description: str = ""

    def __post_init__(self) -> None:
        where = f"Column {self.name!r}"
        if self.kind not in _KINDS:
            raise SchemaError(f"{where} has kind {self.kind!r}.", hint="Kinds are number, category and flag.")
        if self.kind != "number" and (self.low is not None or self.high is not None or self.unit):
            raise SchemaError(f"{where} is a {self.kind}, but has a range or a unit.", hint="Only a number has low, high, unit.")
        if self.kind != "category" and self.categories:
            raise SchemaError(f"{where} is a {self.kind}, but lists categories.", hint='Set kind = "category".')
        if self.kind == "category" and not self.categories:
            raise SchemaError(f"{where} is a category without categories.", hint="List every category that may occur.")
        if len(set(self.categories)) != len(self.categories):
            raise SchemaError(f"{where} lists a category twice.", hint="List each category once.")
        for number in (self.low, self.high, *self.missing):
            if isinstance(number, float) and not math.isfinite(number):
                raise SchemaError(f"{where} has the bound or missing code {number}.", hint="Leave out what does not exist.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise SchemaError(f"{where} ranges from {self.low} to {self.high}.", hint="low must not exceed high.")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted: one of `classes` (their order is the class index), or a number in `unit`."""

    name: str
    kind: TargetKind
    classes: tuple[str, ...] = ()
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _TARGET_KINDS:
            raise SchemaError(f"Target {self.name!r} has kind {self.kind!r}.", hint="Kinds are class and number.")
        if self.kind == "class" and (len(self.classes) < 2 or len(set(self.classes)) != len(self.classes)):
            raise SchemaError(f"Target {self.name!r} needs two or more distinct classes.", hint='classes = ["no", "yes"]')
        if self.kind == "number" and self.classes:
            raise SchemaError(f"Target {self.name!r} is a number, but lists classes.", hint='Set kind = "class".')


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Every column that is read, the target, and the name of the client column."""

    columns: tuple[Column, ...]
    target: Target
    client: str = "client"

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not names:
            raise SchemaError("The schema has no columns.", hint="Add a [[columns]] table for each feature.")
        for name in (*names, self.target.name, self.client):
            if [*names, self.target.name, self.client].count(name) > 1:
                raise SchemaError(f"The schema names {name!r} twice.", hint="Feature, target and client columns must differ.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of that name; SchemaError with the near miss if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise SchemaError(f"The schema has no column {name!r}.", hint=near_miss(name, self.names))

    def digest(self) -> str:
        """`sha256:` and the hash of the schema's canonical JSON."""
        content = _floating([self.client, _shown(self.target), [_shown(column) for column in self.columns]])
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def dumps(self) -> str:
        """The TOML text that `parse_schema` reads back as an equal schema."""
        lines = ["format = 1", f"client = {_toml(self.client)}", "", "[target]", *_assignments(self.target)]
        for column in self.columns:
            lines += ["", "[[columns]]", *_assignments(column)]
        return "\n".join(lines) + "\n"


def load_schema(path: str | Path) -> Schema:
    """The schema in a TOML file; Unreadable, UnknownKey or SchemaError say what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"The schema {path} cannot be read: {error}.", hint="Give the path of a TOML file.") from error
    return parse_schema(text)


def parse_schema(text: str) -> Schema:
    """The schema that a TOML text describes."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"The schema is not TOML: {error}.", hint="See docs/reference/schema.md.") from error
    except RecursionError:
        raise SchemaError("The schema is nested too deeply.", hint="See docs/reference/schema.md.") from None
    _refuse_unknown(content, {"format", "client", "target", "columns"}, where="")
    if content.get("format", 1) != 1:
        raise SchemaError(f"The schema has format {content['format']!r}.", hint="This Freehold reads format 1.")
    target, columns, client = content.get("target"), content.get("columns"), content.get("client", "client")
    if not isinstance(target, dict) or not isinstance(columns, list) or not isinstance(client, str):
        raise SchemaError("The schema needs a [target] table and [[columns]] tables.", hint="See docs/reference/schema.md.")
    return Schema(
        columns=tuple(_column(entry, f"columns[{index}]") for index, entry in enumerate(columns)),
        target=_target(target),
        client=client,
    )


def infer_schema(population: Population) -> Schema:
    """The schema that the data suggests: kinds and vocabularies, but no ranges and no units, which only a person knows.

    Its vocabularies come from all clients together; a federation needs a declared schema instead.
    """
    if population.schema is not None:
        return population.schema
    frame = population.features
    if isinstance(frame, np.ndarray):
        flat = frame.reshape(len(frame), -1)
        frame = pl.DataFrame({f"x{index}": flat[:, index] for index in range(flat.shape[1])})
    target = (
        Target(name="target", kind="class", classes=population.classes)
        if len(population.classes) > 1
        else Target(name="target", kind="number")
    )
    return Schema(columns=tuple(infer_column(frame[name]) for name in frame.columns), target=target)


def infer_column(series: pl.Series) -> Column:
    """The column that a Series suggests: text is a category, only 0 and 1 is a flag, else a number."""
    missing: tuple[Code, ...] = ("",) if series.null_count() else ()
    values = series.drop_nulls().unique()
    if series.dtype == pl.String:
        return Column(name=series.name, kind="category", categories=tuple(vocabulary(values.to_list())), missing=missing)
    is_flag = len(values) == 2 and set(values.to_list()) == {0, 1}
    return Column(name=series.name, kind="flag" if is_flag else "number", missing=missing)


def vocabulary(values: list[str]) -> list[str]:
    """Distinct values, numbers in numeric order, else alphabetically."""
    distinct = sorted(set(values))
    try:
        return sorted(distinct, key=float)
    except ValueError:
        return distinct or [""]


def _shown(entry: Column | Target) -> dict[str, object]:
    """Fields that differ from their default, in order of declaration."""
    shown: dict[str, object] = {}
    for item in fields(entry):
        value = getattr(entry, item.name)
        if value != item.default:
            shown[item.name] = list(value) if isinstance(value, tuple) else value
    return shown


def _floating(value: object) -> object:
    """The value with every number a float: 18 and 18.0 are the same bound, and so are 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: _floating(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_floating(each) for each in value]
    return float(value) + 0.0 if isinstance(value, int | float) else value


def _assignments(entry: Column | Target) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in _shown(entry).items()]


def _toml(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value)


def _refuse_unknown(table: Mapping[str, object], known: set[str], *, where: str) -> None:
    for key in table:
        if key not in known:
            raise UnknownKey(f"The schema has the key {where}{key}, which nobody reads.", hint=near_miss(key, known))


def _column(entry: object, where: str) -> Column:
    if not isinstance(entry, dict):
        raise SchemaError(f"{where} is not a table.", hint="Write each column as [[columns]].")
    _refuse_unknown(entry, {item.name for item in fields(Column)}, where=f"{where}.")
    codes = entry.get("missing", [])
    if not isinstance(codes, list) or not all(isinstance(c, str | int | float) and not isinstance(c, bool) for c in codes):
        raise SchemaError(f"{where}.missing must be a list of numbers and texts.", hint='missing = ["", "?", -9]')
    return Column(
        name=_text(entry, "name", where),
        kind=_KINDS[_choice(entry, "kind", where, _KINDS)],
        unit=_text(entry, "unit", where, ""),
        low=_number(entry, "low", where),
        high=_number(entry, "high", where),
        categories=_texts(entry, "categories", where),
        missing=tuple(codes),
        description=_text(entry, "description", where, ""),
    )


def _target(entry: Mapping[str, object]) -> Target:
    _refuse_unknown(entry, {item.name for item in fields(Target)}, where="target.")
    return Target(
        name=_text(entry, "name", "target"),
        kind=_TARGET_KINDS[_choice(entry, "kind", "target", _TARGET_KINDS)],
        classes=_texts(entry, "classes", "target"),
        unit=_text(entry, "unit", "target", ""),
        description=_text(entry, "description", "target", ""),
    )


def _choice(entry: Mapping[str, object], key: str, where: str, known: Iterable[str]) -> str:
    value = _text(entry, key, where)
    if value not in known:
        raise SchemaError(f"{where}.{key} is {value!r}.", hint=near_miss(value, known))
    return value


def _text(entry: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise SchemaError(f"{where}.{key} must be a text.", hint=f'{key} = "..."')
    return value


def _texts(entry: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SchemaError(f"{where}.{key} must be a list of texts.", hint=f'{key} = ["a", "b"]')
    return tuple(value)


def _number(entry: Mapping[str, object], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SchemaError(f"{where}.{key} must be a number.", hint=f"{key} = 0")
    return float(value)
