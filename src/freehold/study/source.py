"""Where the tensors of a seed come from: new splits for each seed, or the one published split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch

from freehold.data import Population, Prepared, SplitRule, heart_flamby, prepare, split

POOLED = "all data pooled"
"""The name of the one client that has everybody's data."""


class Source(Protocol):
    """Gives the prepared data of a seed; `pooled` adds the client POOLED, with standardization that suits it."""

    splits: Literal["repeated", "fixed"]

    def prepared(self, seed: int, pooled: bool = False) -> Prepared:
        """The tensors, splits and clients of this seed."""


@dataclass(kw_only=True)
class RepeatedSplits:
    """A population that is split anew for each seed, before anything is fitted."""

    population: Population
    rule: SplitRule
    statistics: Literal["client", "federated", "ranges", "none"]
    min_examples: int
    kind: Literal["silos", "devices"]
    splits: Literal["repeated", "fixed"] = "repeated"

    def prepared(self, seed: int, pooled: bool = False) -> Prepared:
        """Split, then prepare."""
        found = prepare(
            self.population,
            split(self.population, self.rule, seed=seed),
            min_examples=self.min_examples,
            kind=self.kind,
            # A shared model of a number needs one scale for it, or each client's mean would be given away for free.
            statistics="federated" if not self.population.classes else self.statistics,
            scale_target=not self.population.classes,
        )
        return with_pooled(found) if pooled else found


@dataclass(kw_only=True)
class HeldOut:
    """A population whose test examples are those of one seed, for all seeds; the rest is split into training and validation
    examples anew for each. What is chosen by the validation examples of all seeds has then not seen a single test example."""

    drawn: RepeatedSplits
    first: int
    """The seed that draws the test examples."""
    splits: Literal["repeated", "fixed"] = "fixed"

    def prepared(self, seed: int, pooled: bool = False) -> Prepared:
        """Split, then prepare."""
        population, rule = self.drawn.population, self.drawn.rule
        tested = split(population, rule, seed=self.first)
        said = np.full(len(population.target), "train", dtype="<U10")
        if population.split is not None:
            said[population.split.astype(str) == "validation"] = "validation"
        for rows in tested.values():
            said[rows["test"]] = "test"
        rest = replace(rule, test=0.0, validation=rule.validation / (1 - rule.test))
        return replace(self.drawn, population=replace(population, split=said), rule=rest).prepared(seed, pooled)


@dataclass(kw_only=True)
class FlambySplit:
    """FLamby's own split of its Fed-Heart-Disease, the same for all seeds."""

    splits: Literal["repeated", "fixed"] = "fixed"

    def prepared(self, seed: int, pooled: bool = False) -> Prepared:
        """As published: the pooled model trains on commonly standardized data and is tested on each hospital's own."""
        own, common = heart_flamby()
        if not pooled:
            return own
        # Both standardizations side by side: the pooled client's rows come second.
        joined = with_pooled(common)
        shift = len(own.x)
        rows = {**own.rows, POOLED: {name: where + shift for name, where in joined.rows[POOLED].items()}}
        return replace(own, x=torch.cat([own.x, common.x]), y=torch.cat([own.y, common.y]), rows=rows)


def with_pooled(prepared: Prepared) -> Prepared:
    """The same data with one more client, which has everybody's rows."""
    together = {name: torch.cat([prepared.rows[c][name] for c in prepared.clients]) for name in ("train", "validation", "test")}
    return replace(prepared, rows={**prepared.rows, POOLED: together})


def without_test(prepared: Prepared) -> Prepared:
    """The same data without the test examples: neither their rows nor what is in them."""
    hidden = torch.cat([rows["test"] for rows in prepared.rows.values()])
    x, y = prepared.x.clone(), prepared.y.clone()
    x[hidden], y[hidden] = 0, 0
    return replace(prepared, x=x, y=y, rows={c: {**rows, "test": rows["test"][:0]} for c, rows in prepared.rows.items()})


def fingerprint(prepared: Prepared) -> str:
    """A digest of the tensors and splits: whether two studies have the same data."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(prepared.x.contiguous().numpy().data)
    digest.update(prepared.y.contiguous().numpy().data)
    for client, rows in prepared.rows.items():
        for name, where in rows.items():
            digest.update(f"{client}|{name}|".encode())
            digest.update(where.contiguous().numpy().data)
    return digest.hexdigest()
