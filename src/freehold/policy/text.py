"""Policies from text: strict TOML, each error with file, line, key and the near miss."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import msgspec

from freehold.errors import PlanError, PolicyError, UnknownKey, near_miss
from freehold.plan.strict import examine, typed
from freehold.policy.tables import DataRules, Policy

FILE = "policy.toml"
LIMIT_BYTES = 1 << 20
_MAY_BE_INF = ("epsilon_per_study", "epsilon_total", "most_clip")


def load_policy(path: Path) -> Policy:
    """The policy in a file; the empty one, by which every plan waits, if there is none. Raises PolicyError."""
    return parse_policy(read_policy(path), str(path))


def read_policy(path: Path) -> bytes:
    """The bytes of a policy, none if there is no file; raises PolicyError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}.", hint="Check its owner and mode.") from None


def parse_policy(body: bytes | str, name: str = FILE) -> Policy:
    """The policy that a text describes; raises PolicyError. `name` is what errors call the file."""
    if len(body) > LIMIT_BYTES:
        raise PolicyError(f"{name} has more than {LIMIT_BYTES} bytes.", hint="Was another file meant?")
    try:
        text = body.decode() if isinstance(body, bytes) else body
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{name} is not TOML: {error}.", hint="Text stands in quotes, tables in [brackets].") from None
    except RecursionError:
        raise PolicyError(f"{name} is nested too deeply.", hint="A policy has a table for each data set, no more.") from None
    for key in raw:
        if key != "data":
            hint = "It belongs in the table of a data set, [data.NAME]." if key in _KEYS else near_miss(key, ["data"])
            raise PolicyError(f"{_at(name, text, key)}: nobody reads {key!r}.", hint=hint)
    tables = raw.get("data", {})
    if not isinstance(tables, dict):
        raise PolicyError(f"{_at(name, text, 'data')}: data should be a table.", hint="Write [data.heart], and its rules below.")
    return Policy(data={key: _rules(key, value, name, text) for key, value in tables.items()})


def _rules(key: str, value: object, name: str, text: str) -> DataRules:
    where = f"data.{key}"
    if not isinstance(value, dict):
        hint = "Write [data.heart] above it." if key in _KEYS else f"Write [data.{key}], and its rules below."
        raise PolicyError(f"{_at(name, text, where)}: {where} should be a table.", hint=hint)
    bounded = {k: 1.0 if k in _MAY_BE_INF and v == math.inf else v for k, v in value.items()}
    try:
        examine(bounded, DataRules, where, DataRules)
        return msgspec.convert(value, DataRules)
    except UnknownKey as error:
        unknown = next(each for each in value if each not in _KEYS)
        raise PolicyError(f"{_at(name, text, f'{where}.{unknown}')}: {_low(error.message)}", hint=error.hint) from None
    except PlanError as error:
        raise PolicyError(f"{_at(name, text, _named(error.message))}: {error.message}", hint=error.hint) from None
    except msgspec.ValidationError as error:
        told = typed(str(error).replace("`$", f"`$.{where}"))
        raise PolicyError(f"{_at(name, text, _named(told.message))}: {told.message}", hint=told.hint) from None
    except PolicyError as error:
        leaf = re.match(r"\w+", error.message)
        raise PolicyError(
            f"{_at(name, text, f'{where}.{leaf[0]}' if leaf else where)}: {where}: {error.message}", hint=error.hint
        ) from None


def _low(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _named(message: str) -> str:
    """The dotted path at the head of a message."""
    return message.split(" ", 1)[0].partition("[")[0]


def _at(name: str, text: str, path: str) -> str:
    """`file:line` of a dotted path, or `file` where the line is not found: a key in quotes, or in an inline table."""
    table, _, key = path.rpartition(".")
    heading = ""
    found = None
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            heading = re.sub(r"[\s\"']", "", match[1])
            if heading == path or (heading.startswith(f"{path}.") and found is None):
                found = number
        elif (match := re.match(r"\s*([\w.\"'-]+)\s*=", line)) and re.sub(r"[\"']", "", match[1]) == key and heading == table:
            return f"{name}:{number}"
    return name if found is None else f"{name}:{found}"


_KEYS = frozenset(DataRules.__struct_fields__)
