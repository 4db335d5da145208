"""Train, validation and test rows for each client: seeded, before anything is fitted, blind to the other clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.data.population import SPLITS, Population
from freehold.drawing import digest_seed
from freehold.errors import HyperparameterError

Rows = NDArray[np.int64]
Splits = Mapping[str, Mapping[str, Rows]]
"""Client -> "train" | "validation" | "test" -> rows of the population, ascending."""

_CANDIDATES = 16  # ways to deal out whole groups, of which the one nearest to the wanted shares is taken


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Shares of a client's examples, and what to heed."""

    test: float = 0.25  # in [0, 1)
    validation: float = 0.15  # in [0, 1); test + validation < 1
    stratify: bool = True  # class shares alike in all splits, as far as they can be
    group: bool = True  # keep the population's groups together, if it has groups
    time: bool = True  # train before validation before test, if the population has times

    def __post_init__(self) -> None:
        for name in ("test", "validation"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise HyperparameterError(f"The share of {name} examples is {share}.", hint="Give a number in [0, 1).")
        if self.test + self.validation >= 1:
            raise HyperparameterError(
                f"test {self.test} and validation {self.validation} leave nothing to train on.",
                hint="Their sum must be below 1.",
            )


def split(population: Population, rule: SplitRule, *, seed: int) -> Splits:
    """The rows of each client's splits, disjoint and complete.

    What a client gets depends on its own examples, its name and the seed alone. Train is never empty; test is not from two
    examples (or groups) on, validation from three on, if their share is above 0. A population with splits of its own keeps
    them; what it lacks of a client's validation or test rows is taken from that client's train rows. Groups beat times and
    classes: with groups, whole groups are dealt out, in order of their first time if there are times.
    """
    return {client: _split_client(population, rule, client, rows, seed) for client, rows in population.rows.items()}


def _split_client(population: Population, rule: SplitRule, client: str, rows: Rows, seed: int) -> dict[str, Rows]:
    own: dict[str, Rows] = {}
    pool = rows
    if population.split is not None:
        said = population.split[rows].astype(str)
        own = {name: rows[said == name] for name in ("validation", "test") if (said == name).any()}
        pool = rows[said == "train"]
    rng = np.random.default_rng(digest_seed("split", seed, client))
    shares = {name: 0.0 if name in own else share for name, share in (("test", rule.test), ("validation", rule.validation))}
    wanted = _amounts(len(pool), shares["test"], shares["validation"])
    if population.group is not None and rule.group:
        times = population.time[pool] if population.time is not None and rule.time else None
        parts = _by_group(pool, population.group[pool], times, population.target[pool], wanted, rng)
    elif population.time is not None and rule.time:
        parts = _by_time(pool, population.time[pool], wanted)
    else:
        labels = population.target[pool] if population.classes and rule.stratify else np.zeros(len(pool), dtype=np.int64)
        parts = _by_class(pool, labels, wanted, rng)
    parts |= own
    return {name: np.sort(parts[name]).astype(np.int64) for name in SPLITS}


def _amounts(examples: int, test: float, validation: float) -> tuple[int, int]:
    """How many of a client's examples (or groups) go to test and validation; at least one each where that leaves one."""
    kept = 2 if validation > 0 and examples >= 3 else 1
    in_test = min(max(round(test * examples), 1), examples - kept) if test > 0 and examples >= 2 else 0
    left = examples - in_test
    in_validation = min(max(round(validation * examples), 1), left - 1) if validation > 0 and left >= 2 else 0
    return in_test, in_validation


def _by_class(pool: Rows, labels: NDArray[Any], wanted: tuple[int, int], rng: np.random.Generator) -> dict[str, Rows]:
    """Rows drawn class by class, in proportion; a class with one example stays in train if it can."""
    classes, index = np.unique(labels, return_inverse=True)
    members = [rng.permutation(pool[index == each]) for each in range(len(classes))]
    parts: dict[str, Rows] = {}
    for name, amount in zip(("test", "validation"), wanted, strict=True):
        takes = _proportional(np.array([len(rows) for rows in members], dtype=np.int64), amount, rng)
        parts[name] = _joined([rows[:take] for rows, take in zip(members, takes, strict=True)])
        members = [rows[take:] for rows, take in zip(members, takes, strict=True)]
    parts["train"] = _joined(members)
    return parts


def _proportional(counts: NDArray[np.int64], amount: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many to take of each class: largest remainders, and one left of each class while that is possible."""
    takes = np.zeros_like(counts)
    if amount == 0 or not len(counts):
        return takes
    quota: NDArray[np.float64] = amount * counts / counts.sum()
    takes = np.minimum(np.floor(quota).astype(np.int64), np.maximum(counts - 1, 0)).astype(np.int64)
    order = np.lexsort((rng.random(len(counts)), -(quota - np.floor(quota))))
    for spare in (1, 0):
        while takes.sum() < amount:
            open_ones = [each for each in order if takes[each] < counts[each] - spare]
            if not open_ones:
                break
            for each in open_ones[: amount - int(takes.sum())]:
                takes[each] += 1
    return takes


def _by_time(pool: Rows, times: NDArray[Any], wanted: tuple[int, int]) -> dict[str, Rows]:
    """The latest rows are the test rows, those before them validation."""
    order = pool[np.argsort(times, kind="stable")]
    first_test = len(order) - wanted[0]
    first_validation = first_test - wanted[1]
    return {"train": order[:first_validation], "validation": order[first_validation:first_test], "test": order[first_test:]}


def _by_group(
    pool: Rows,
    groups: NDArray[Any],
    times: NDArray[Any] | None,
    target: NDArray[Any],
    wanted: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, Rows]:
    """Whole groups; of several seeded ways to deal them out, the one whose sizes and class shares come nearest."""
    names, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index, minlength=len(names))
    if times is None:
        orders = [rng.permutation(len(names)) for _ in range(_CANDIDATES)]
    else:
        ranks = np.unique(times, return_inverse=True)[1]
        first = np.full(len(names), len(pool), dtype=np.int64)
        np.minimum.at(first, index, ranks)
        orders = [np.argsort(-first, kind="stable")]
    dealt = [_deal(order, sizes, wanted) for order in orders]
    best = min(dealt, key=lambda place: _distance(place[index], target, wanted))
    place: Rows = best[index]
    return {"train": pool[place == 0], "validation": pool[place == 1], "test": pool[place == 2]}


def _deal(order: NDArray[np.int64], sizes: NDArray[np.int64], wanted: tuple[int, int]) -> NDArray[np.int64]:
    """Split of each group: test (2) is filled first, then validation (1); the rest, at least one group, is train (0)."""
    place = np.zeros(len(sizes), dtype=np.int64)
    at = 0
    kept = 2 if wanted[1] and len(order) >= 3 else 1
    for split_index, amount, needed in ((2, wanted[0], kept), (1, wanted[1], 1)):
        filled = 0
        while at < len(order) - needed and amount:
            size = int(sizes[order[at]])
            if filled and abs(filled + size - amount) > abs(filled - amount):
                break
            place[order[at]] = split_index
            filled += size
            at += 1
            if filled >= amount:
                break
    return place


def _distance(place: NDArray[np.int64], target: NDArray[Any], wanted: tuple[int, int]) -> float:
    """How far sizes, and class shares (or means) of the three parts, are from what was wanted."""
    size = sum(abs(float((place == part).sum()) - amount) for part, amount in ((2, wanted[0]), (1, wanted[1]))) / len(place)
    shares = 0.0
    if np.issubdtype(target.dtype, np.integer):
        whole = np.bincount(target)
        for part in (0, 1, 2):
            here = np.bincount(target[place == part], minlength=len(whole))
            if here.sum():
                shares += float(np.abs(here / here.sum() - whole / whole.sum()).sum()) / 2
    return size + shares / 3


def _joined(parts: list[Rows]) -> Rows:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
