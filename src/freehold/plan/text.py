"""Plans to and from text: strict TOML in, canonical TOML out, and the digest that is a plan's identity."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import msgspec
import tomli_w

from freehold.errors import PlanError, Unreadable
from freehold.plan.checks import FORMAT, check_format
from freehold.plan.strict import examine, typed
from freehold.plan.tables import Plan

_LIMIT_BYTES = 4 * 2**20


def load_plan(path: Path | str) -> Plan:
    """Read a plan from a TOML file; `Unreadable` when there is none, else the errors of `parse`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions.") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not UTF-8 text.", hint="A plan is a TOML file; was another file meant?") from None
    return parse(text)


def parse(text: str) -> Plan:
    """Read a plan from TOML.

    Raises `PlanVersion` for another format, `UnknownKey` for a key that nobody reads, `PlanError` for the rest.
    """
    if len(text) > _LIMIT_BYTES:
        raise PlanError(f"The plan has {len(text)} characters; at most {_LIMIT_BYTES} are read.", hint="Was another file meant?")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"The plan is not TOML: {error}.", hint="Text stands in quotes, tables in [brackets].") from None
    except ValueError:
        raise PlanError("The plan has a whole number of thousands of digits.", hint="Write a smaller one.") from None
    except RecursionError:
        raise PlanError("The plan is nested too deeply.", hint="A plan has tables in tables, and no deeper.") from None
    examine(raw.get("format", FORMAT), None, "format")
    check_format(raw.get("format", FORMAT))
    examine(raw, Plan, "")
    try:
        return msgspec.convert(raw, Plan)
    except msgspec.ValidationError as error:
        raise typed(str(error)) from None


def dumps(plan: Plan) -> str:
    """The plan as canonical TOML: every field that has a value, in the order of the reference, options sorted.

    `parse(dumps(plan)) == plan`.
    """
    return tomli_w.dumps(_plain(plan, omit_defaults=False))


def digest(plan: Plan) -> str:
    """`sha256:…` over the canonical JSON of what differs from the defaults: equal plans have equal digests.

    Keys sorted, no spaces, UTF-8; whole floats are written as integers and the others as the shortest decimal that reads back.
    """
    text = json.dumps(
        _plain(plan, omit_defaults=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(table: msgspec.Struct, *, omit_defaults: bool) -> dict[str, object]:
    """A table as dicts, lists and scalars; absent values are left out."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(table):
        value = getattr(table, field.name)
        if value is None or (omit_defaults and value == _default(field)):
            continue
        found[field.name] = _plain_value(value, omit_defaults)
    return found


def _plain_value(value: object, omit_defaults: bool) -> object:
    if isinstance(value, msgspec.Struct):
        return _plain(value, omit_defaults=omit_defaults)
    if isinstance(value, tuple):
        return [_plain_value(item, omit_defaults) for item in value]
    if isinstance(value, dict):
        return {key: _plain_value(value[key], omit_defaults) for key in sorted(value)}
    if omit_defaults and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default_factory() if callable(field.default_factory) else field.default
