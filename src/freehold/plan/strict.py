"""What a strict reader refuses: keys that nobody reads, words that are no choice, numbers that are none, wrong types."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from freehold.errors import PlanError, UnknownKey, near_miss
from freehold.plan.checks import dotted, shown
from freehold.plan.tables import Plan


def examine(value: object, kind: object, path: str, top: type[msgspec.Struct] = Plan) -> None:
    """Refuse keys that `kind` does not have, words it does not know and numbers that are none; types are msgspec's to check.

    `top`: in whose tables a misplaced key is looked for.
    """
    kind = present(kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanError(f"{path} is {value}, but must be a finite number.", hint="Write a number, not nan and not inf.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # Python may not even be able to write it in a message
        raise PlanError(f"{path} is a whole number of more than 64 bits.", hint="Write a smaller one.")
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        hints = get_type_hints(kind)
        for key, item in value.items():
            if key not in hints:
                raise _unknown(key, path, hints, top)
            examine(item, hints[key], dotted(path, key), top)
    elif get_origin(kind) is Literal and isinstance(value, str) and value not in get_args(kind):
        raise PlanError(f"{path} is {shown(value)}, which is none of its values.", hint=near_miss(value, get_args(kind)))
    elif isinstance(value, list):
        item_kind = get_args(kind)[0] if get_origin(kind) is tuple else None
        for index, item in enumerate(value):
            examine(item, item_kind, f"{path}[{index}]", top)
    elif isinstance(value, dict):
        for key, item in value.items():
            examine(item, None, dotted(path, key), top)


def present(kind: object) -> object:
    """`X` for `X | None`: what a value that is there has to be."""
    kinds = [one for one in get_args(kind) if one is not type(None)] if get_origin(kind) in (Union, UnionType) else []
    return kinds[0] if len(kinds) == 1 else kind


def _unknown(key: str, path: str, known: Iterable[str], top: type[msgspec.Struct]) -> UnknownKey:
    for table, name in _fields(top, ""):
        if name == key:
            hint = f"It belongs in [{table}]." if table else "It belongs at the top, before the first [table]."
            break
    else:
        hint = near_miss(key, known)
    return UnknownKey(f"Nobody reads {shown(dotted(path, key))}.", hint=hint)


def _fields(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, str]]:
    """(dotted path of the table, field) of every field of the tables in `kind`, breadth first."""
    hints = get_type_hints(kind)
    yield from ((path, name) for name in hints)
    for name, hint in hints.items():
        hint = present(hint)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _fields(hint, dotted(path, name))


def typed(text: str) -> PlanError:
    """msgspec's complaint, "Expected `int`, got `str` - at `$.training.rounds`", in Freehold's words."""
    what, _, where = text.partition(" - at `$")
    path = where.rstrip("`").removeprefix(".").replace("[...]", "")
    if missing := re.search(r"required field `(\w+)`", what):
        path = dotted(path, missing[1])
        return PlanError(f"{path} is missing.", hint=f"Add it; the plan's reference says what {path} means.")
    expected, _, got = what.removeprefix("Expected ").partition(", got ")
    kinds = [kind for kind in re.findall(r"\w+", expected) if kind in _WORDS]
    found = f"{path} should be {' or '.join(_WORDS[kind][0] for kind in kinds) or expected}"
    found += f", but is {_WORDS.get(got.strip('`'), (got,))[0]}." if got else "."
    leaf = path.rpartition(".")[2]
    return PlanError(found, hint=f"Write it like this: {_WORDS[kinds[0]][1].format(leaf=leaf, path=path)}" if kinds else "")


_WORDS = {
    "int": ("a whole number", "{leaf} = 20"),
    "float": ("a number", "{leaf} = 0.5"),
    "str": ("text", '{leaf} = "text"'),
    "bool": ("true or false", "{leaf} = true"),
    "object": ("a table", "[{path}]"),
    "array": ("a list", "{leaf} = []"),
}
"""msgspec's name of a type -> ours, and how such a value is written."""
