"""Clients for data that has none: label skew, few classes, quantity skew, feature shift. Every row goes to one client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.population import Population
from freehold.drawing import digest_seed
from freehold.errors import DataError, HyperparameterError, TooFewExamples, UnknownName, near_miss

Owners = NDArray[np.int64]  # [T] index of the client each row goes to
_TRIES = 100
_BINS = 10


def partition(population: Population, how: str, *, clients: int, seed: int, min_examples: int = 10) -> Population:
    """The same examples, in the same order, dealt out to `clients` clients with at least `min_examples` each.

    - "dirichlet:alpha": the shares of a class over the clients are Dirichlet(alpha), alpha > 0 (Yurochkin et al., ICML 2019,
      arXiv:1905.12022; PFLlib in addition gives no more to a client that has its even share). Drawn again until every
      client has enough; if it never happens, the largest clients of the last draw give some away, of a class the small one has.
    - "classes:k": k classes per client, in unequal amounts (McMahan et al. 2017; PFLlib's "pathological").
    - "quantity:alpha": sizes are Dirichlet(alpha), examples are drawn alike.
    - "shift:s": alike in size and labels, but each client's number features are scaled by 2**(s u), u uniform in [-1, 1], and
      moved by s standard deviations times a standard normal number, each feature by its own. Ranges leave the schema.
    - "iid": alike.

    A regression target is cut into ten bins at its quantiles, which then are the classes.
    Raises UnknownName, HyperparameterError, or TooFewExamples, which says why.
    """
    kind, _, text = how.partition(":")
    if kind not in _KINDS:
        raise UnknownName(f"There is no partition {kind!r}.", hint=near_miss(kind, _KINDS))
    strength = _strength(kind, text)
    if clients < 1 or min_examples < 1:
        raise HyperparameterError(
            f"{clients} clients with {min_examples} examples or more make no sense.", hint="Both must be 1 or more."
        )
    if population.group is not None:
        raise DataError(
            "The examples come in groups, and a partition by examples would tear them.", hint="Use the groups as clients."
        )
    rows = len(population.target)
    if rows < clients * min_examples:
        raise TooFewExamples(
            f"{rows} examples are too few for {clients} clients with {min_examples} each: {clients * min_examples} are needed.",
            hint="Make fewer clients, or lower min_examples.",
        )
    rng = np.random.default_rng(digest_seed("partition", how, clients, seed))
    owners = _KINDS[kind](_labels(population), strength, clients, min_examples, rng)
    width = len(str(clients))
    names = np.array([f"client {index + 1:0{width}d}" for index in range(clients)])
    note = f"{clients} clients made by {how} with seed {seed}, {min_examples} examples or more in each."
    made = replace(population, client=names[owners], notes=(*population.notes, note), coded={})
    return _shifted(made, owners, strength, clients, rng) if kind == "shift" else made


def _strength(kind: str, text: str) -> float:
    if kind == "iid":
        if text:
            raise HyperparameterError(f"iid takes no parameter, but has {text!r}.", hint="Write iid.")
        return 0.0
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    fits = np.isfinite(strength) and (strength >= 0 if kind == "shift" else strength > 0)
    if not fits or (kind == "classes" and not strength.is_integer()):
        wanted = {"classes": "a whole number above 0", "shift": "a number from 0 on"}.get(kind, "a number above 0")
        raise HyperparameterError(f"The parameter of {kind} is {text!r}.", hint=f"Write {kind}: and {wanted}, as {kind}:1.")
    return strength


def _labels(population: Population) -> NDArray[np.int64]:
    if population.classes:
        return population.target.astype(np.int64)
    edges = np.quantile(population.target, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.searchsorted(np.unique(edges), population.target, side="right").astype(np.int64)


def _iid(labels: NDArray[np.int64], _: float, clients: int, min_examples: int, rng: np.random.Generator) -> Owners:
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
    return owners


def _quantity(labels: NDArray[np.int64], alpha: float, clients: int, min_examples: int, rng: np.random.Generator) -> Owners:
    sizes = min_examples + _whole(_dirichlet(alpha, clients, rng), len(labels) - clients * min_examples)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.repeat(np.arange(clients), sizes)
    return owners


def _label_skew(labels: NDArray[np.int64], alpha: float, clients: int, min_examples: int, rng: np.random.Generator) -> Owners:
    owners = np.empty(len(labels), dtype=np.int64)
    for _ in range(_TRIES):
        sizes = np.zeros(clients, dtype=np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = _dirichlet(alpha, clients, rng)
            amounts = _whole(shares / shares.sum(), len(members))
            owners[members] = np.repeat(np.arange(clients), amounts)
            sizes += amounts
        if sizes.min() >= min_examples:
            return owners
    return _topped_up(owners, labels, clients, min_examples)


def _few_classes(labels: NDArray[np.int64], k: float, clients: int, min_examples: int, rng: np.random.Generator) -> Owners:
    present = np.unique(labels)
    each = int(k)
    if each > len(present):
        raise HyperparameterError(f"classes:{each} asks for {each} of {len(present)} classes.", hint="Ask for fewer per client.")
    if clients * each < len(present):
        raise TooFewExamples(
            f"{clients} clients with {each} classes each cannot hold {len(present)} classes.",
            hint="Make more clients, or give each more classes.",
        )
    takers = _takers(len(present), each, clients, rng)
    owners = np.empty(len(labels), dtype=np.int64)
    for index, label in enumerate(present):
        members = rng.permutation(np.flatnonzero(labels == label))
        who = np.flatnonzero(takers[:, index])
        if len(members) < len(who):
            raise TooFewExamples(
                f"Class {label} has {len(members)} examples for {len(who)} clients.",
                hint="Make fewer clients, or fewer classes per client.",
            )
        weights = rng.uniform(0.1, 1.0, len(who))
        owners[members] = np.repeat(who, 1 + _whole(weights / weights.sum(), len(members) - len(who)))
    return _topped_up(owners, labels, clients, min_examples, only_own=True)


def _takers(classes: int, each: int, clients: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[clients, classes]: which client gets which class; `each` per client, classes used equally often, give or take one."""
    left = np.full(classes, clients * each // classes)
    left[rng.permutation(classes)[: clients * each % classes]] += 1
    takers = np.zeros((clients, classes), dtype=bool)
    for client in rng.permutation(clients):
        most_left = np.lexsort((rng.random(classes), -left))[:each]
        takers[client, most_left] = True
        left[most_left] -= 1
    return takers


def _topped_up(owners: Owners, labels: NDArray[np.int64], clients: int, min_examples: int, *, only_own: bool = False) -> Owners:
    """Owners after small clients got examples from large ones, of the class they have most of that somebody can give.

    With `only_own` a client gets only classes that it has, and nobody loses its last example of a class.
    """
    table = np.zeros((clients, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (owners, labels), 1)
    owners = owners.copy()
    while (sizes := table.sum(axis=1)).min() < min_examples:
        small = int(sizes.argmin())
        giving = np.where((sizes > min_examples)[:, None], table - only_own, 0)
        giving[small] = 0
        possible = giving.max(axis=0) > 0
        if only_own:
            possible &= table[small] > 0
        if not possible.any():
            raise TooFewExamples(
                f"Client {small + 1} has {sizes[small]} examples of its classes, and no other client can spare one of them; "
                f"{min_examples} are wanted.",
                hint="Make fewer clients, lower min_examples, or give each client more classes.",
            )
        label = int(np.where(possible, table[small], -1).argmax())
        donor = int(np.where(giving[:, label] > 0, sizes, -1).argmax())
        row = int(np.flatnonzero((owners == donor) & (labels == label))[-1])
        owners[row] = small
        table[donor, label] -= 1
        table[small, label] += 1
    return owners


def _shifted(population: Population, owners: Owners, strength: float, clients: int, rng: np.random.Generator) -> Population:
    """Each client's number features, scaled and moved by its own factors."""
    if isinstance(population.features, np.ndarray):
        flat = population.features.reshape(len(owners), -1)
        moved = np.stack([_move(flat[:, d], owners, strength, clients, rng) for d in range(flat.shape[1])], axis=1)
        return replace(population, features=moved.reshape(population.features.shape).astype(population.features.dtype))
    frame, schema = population.features, population.schema
    numbers = {column.name for column in schema.columns if column.kind == "number"} if schema else set(frame.columns)
    moved_columns = [
        pl.Series(name, _move(frame[name].to_numpy(), owners, strength, clients, rng), dtype=frame[name].dtype, nan_to_null=True)
        for name in frame.columns
        if name in numbers and frame[name].dtype.is_numeric()
    ]
    if schema is not None:
        columns = (replace(column, low=None, high=None) if column.name in numbers else column for column in schema.columns)
        schema = replace(schema, columns=tuple(columns))
    return replace(population, features=frame.with_columns(moved_columns), schema=schema)


def _move(values: NDArray[Any], owners: Owners, strength: float, clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
    deviation = float(np.nan_to_num(np.nanstd(values))) if np.isfinite(values).any() else 0.0
    scale = 2.0 ** (strength * rng.uniform(-1, 1, clients))
    offset = strength * deviation * rng.standard_normal(clients)
    return np.asarray(values * scale[owners] + offset[owners], dtype=np.float64)


def _dirichlet(alpha: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Dirichlet(alpha) shares; for an alpha so small that all of them vanish, one client gets everything."""
    drawn: NDArray[np.float64] = rng.dirichlet(np.full(count, alpha))
    if not np.isfinite(drawn).all() or drawn.sum() < 0.5:
        drawn = np.zeros(count)
        drawn[rng.integers(count)] = 1.0
    return drawn


def _whole(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers that add up to `total`, in proportion to shares that add up to 1 (largest remainders)."""
    exact = shares * total
    amounts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - amounts), kind="stable")
    amounts[order[: total - int(amounts.sum())]] += 1
    return amounts


_KINDS: dict[str, Callable[[NDArray[np.int64], float, int, int, np.random.Generator], Owners]] = {
    "dirichlet": _label_skew,
    "classes": _few_classes,
    "quantity": _quantity,
    "shift": _iid,
    "iid": _iid,
}
