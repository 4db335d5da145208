"""Which columns of a table are the client, the target and the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.data.population import Problem
from freehold.data.schema import Schema
from freehold.errors import ColumnMissing, UsageError, near_miss


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the caller said about the columns. Without a schema, what is not named here is a number feature."""

    client: str | None = None
    target: str | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    impute: tuple[str, ...] = ()
    schema: Schema | None = None
    problem: Problem | None = None
    split: str | None = None
    group: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        for name in ("drop", "categorical", "impute"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is a text.", hint=f'Give a tuple of column names: {name}=("age",)')
        both = sorted(set(self.drop) & {*self.categorical, *self.impute})
        if both:
            raise UsageError(f"{both[0]!r} is to be dropped and to be used.", hint="Name it once.")
        if self.schema is not None and self.categorical:
            raise UsageError("A schema says which columns are categories.", hint="Leave out categorical, or the schema.")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Columns by their part, as they stand in the table."""

    client: str
    target: str
    features: tuple[str, ...]
    split: str | None
    group: str | None
    time: str | None
    notes: tuple[str, ...]


def choose(names: Sequence[str], selection: Selection, source: str) -> Chosen:
    """The columns of a table by their part; ColumnMissing names the near miss and lists what is there."""
    schema = selection.schema
    client = selection.client or (schema.client if schema else None)
    target = selection.target or (schema.target.name if schema else None)
    if client is None or target is None:
        raise UsageError(
            f"Nobody said which column is the {'client' if client is None else 'target'}.",
            hint=f"Columns of {source}: {', '.join(names)}.",
        )
    parts = {"client": client, "target": target, "split": selection.split, "group": selection.group, "time": selection.time}
    asked = [(f"{role} column", name) for role, name in parts.items() if name]
    asked += [(f"column to {way}", name) for way in ("drop", "impute") for name in getattr(selection, way)]
    asked += [("categorical column", name) for name in selection.categorical]
    asked += [("feature column of the schema", column.name) for column in schema.columns] if schema else []
    for role, name in asked:
        if name not in names:
            raise ColumnMissing(
                f"{source} has no {role} {name!r}.",
                hint=f"{near_miss(name, names)} Columns: {', '.join(names)}."
                if _is_near(name, names)
                else near_miss(name, names),
            )
    if client == target:
        raise UsageError(f"{client!r} is said to be the client and the target.", hint="Name two different columns.")
    taken = {name for name in parts.values() if name}
    notes: tuple[str, ...] = ()
    if schema is not None:
        features = tuple(name for name in schema.names if name not in selection.drop)
        if len(features) < len(schema.names):
            raise UsageError("Columns of a schema cannot be dropped.", hint="Remove them from the schema.")
        ignored = [name for name in names if name not in taken and name not in features and name not in selection.drop]
        if ignored:
            notes = (f"Columns that the schema does not list are not read: {', '.join(ignored)}.",)
    else:
        features = tuple(name for name in names if name not in taken and name not in selection.drop)
    unused = [name for name in (*selection.categorical, *selection.impute) if name in taken]
    if unused:
        raise UsageError(f"{unused[0]!r} is no feature, so it cannot be categorical or imputed.", hint="Leave it out there.")
    if not features:
        raise ColumnMissing(f"{source} has no feature columns left.", hint=f"Columns: {', '.join(names)}.")
    return Chosen(
        client=client,
        target=target,
        features=features,
        split=selection.split,
        group=selection.group,
        time=selection.time,
        notes=notes,
    )


def _is_near(name: str, names: Sequence[str]) -> bool:
    return near_miss(name, names).startswith("Did you mean")
