"""Algorithms by name, from entry points: a plug-in package's algorithm is a first-class one.

    [project.entry-points."freehold.algorithms"]
    ditto = "freehold.algorithms.ditto:ditto"

The factory takes a `Task` and keyword hyper-parameters; ranges are part of its annotations (`Annotated[float, Between(0, 1)]`).
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, TypeAlias

from freehold.core.algorithm import Algorithm
from freehold.core.task import Task
from freehold.errors import HyperparameterError, UnknownName, near_miss

GROUP = "freehold.algorithms"
"""The entry-point group in which packages announce algorithms."""

Value: TypeAlias = "bool | int | float | str"
"""A hyper-parameter's value."""


@dataclass(frozen=True)
class Between:
    """The range of a hyper-parameter: `low <= value <= high`, or `low < value` where `above` is set."""

    low: float = float("-inf")
    high: float = float("inf")
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        high = "" if self.high == float("inf") else f" and at most {self.high:g}"
        return f"{'above' if self.above else 'at least'} {self.low:g}{high}"


Rate = Annotated[float, Between(0, above=True)]
"""A learning rate: above 0."""
Strength = Annotated[float, Between(0)]
"""A weight of a penalty: at least 0."""
Fraction = Annotated[float, Between(0, 1)]
"""A share: in [0, 1]."""
Count = Annotated[int, Between(1, 1000)]
"""A number of things that each cost memory or a pass over the data: 1 to 1000."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One hyper-parameter of an algorithm, as its factory declares it."""

    name: str
    kind: type
    default: Value | None
    """None: must be given if `required`, else the algorithm has a rule for it."""
    required: bool
    between: Between | None
    choices: tuple[str, ...] = ()

    def check(self, algorithm: str, value: Value) -> Value:
        """`value` as this hyper-parameter's type; raises HyperparameterError if it is of another or out of range."""
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.kind:
            raise HyperparameterError(
                f"{algorithm}.{self.name} is {value!r}, but must be of type {self.kind.__name__}.",
                hint=f"For example {self.default!r}.",
            )
        if self.between is not None and isinstance(value, int | float) and value not in self.between:
            raise HyperparameterError(
                f"{algorithm}.{self.name} is {value}, but must be {self.between}.", hint="Choose one in that range."
            )
        if self.choices and value not in self.choices:
            raise HyperparameterError(
                f"{algorithm}.{self.name} is {value!r}, but must be one of {', '.join(self.choices)}.",
                hint=near_miss(str(value), self.choices),
            )
        return value


@dataclass(frozen=True, kw_only=True)
class AlgorithmEntry:
    """An algorithm that is installed here."""

    name: str
    factory: Callable[..., Algorithm]
    hyperparameters: Mapping[str, Hyperparameter]
    package: str
    """The distribution that brings it."""

    @property
    def summary(self) -> str:
        """The first sentence of the factory's docstring."""
        return " ".join((inspect.getdoc(self.factory) or "").split("\n\n")[0].split())

    @property
    def citation(self) -> str:
        """The docstring of its module: what it is, and the paper."""
        return " ".join((inspect.getdoc(inspect.getmodule(self.factory)) or "").split("\n\n")[0].split())

    @property
    def explanation(self) -> str:
        """The factory's docstring: the equation, and the meaning of the hyper-parameters."""
        return inspect.getdoc(self.factory) or ""

    def build(self, task: Task, **hyperparameters: Value) -> Algorithm:
        """The algorithm for a task; hyper-parameters are checked, and those not given have their defaults."""
        return self.factory(task, **checked(self.name, self.hyperparameters, hyperparameters))


@functools.cache
def _points() -> Mapping[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        if point.name in found and found[point.name].value != point.value:
            raise UnknownName(
                f"Two packages bring an algorithm named {point.name!r}: {found[point.name].value} and {point.value}.",
                hint="Uninstall one of them.",
            )
        found[point.name] = point
    return found


def algorithm_names() -> tuple[str, ...]:
    """The names of all installed algorithms, sorted."""
    return tuple(sorted(_points()))


def algorithm_entry(name: str) -> AlgorithmEntry:
    """An installed algorithm by name; raises UnknownName with the near miss."""
    if name not in _points():
        raise UnknownName(f"There is no algorithm named {name!r}.", hint=near_miss(name, _points()))
    point = _points()[name]
    return entry_of(name, point.load(), package=point.dist.name if point.dist else "")


def entry_of(name: str, factory: Callable[..., Algorithm], *, package: str = "") -> AlgorithmEntry:
    """The entry of a factory that is not installed: an algorithm from a notebook."""
    return AlgorithmEntry(name=name, factory=factory, hyperparameters=declared(factory), package=package)


def declared(factory: Callable[..., Algorithm]) -> Mapping[str, Hyperparameter]:
    """The hyper-parameters of a factory or wrapper: its keyword-only arguments, with the ranges in their annotations."""
    hints = typing.get_type_hints(factory, include_extras=True)
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: _declared(p, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked(name: str, known: Mapping[str, Hyperparameter], given: Mapping[str, Value]) -> dict[str, Value]:
    """`given` as `known` wants it; raises HyperparameterError for one unknown, out of range, of another type or missing."""
    for key in given:
        if key not in known:
            hint = near_miss(key, known) if known else "It has none."
            raise HyperparameterError(f"{name} has no hyper-parameter {key!r}.", hint=hint)
    for key, declaration in known.items():
        if declaration.required and key not in given:
            raise HyperparameterError(
                f"{name} needs the hyper-parameter {key!r}.", hint=f"Set {key}, a {declaration.kind.__name__}."
            )
    return {key: known[key].check(name, value) for key, value in given.items()}


def _declared(parameter: inspect.Parameter, hint: Any) -> Hyperparameter:
    between, choices = None, ()
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # `Rate | None`: the algorithm has a rule for None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        between = next((n for n in notes if isinstance(n, Between)), None)
    if typing.get_origin(hint) is typing.Literal:
        hint, choices = str, typing.get_args(hint)
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    return Hyperparameter(name=parameter.name, kind=hint, default=default, required=required, between=between, choices=choices)
