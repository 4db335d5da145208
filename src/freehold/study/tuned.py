"""From what a search found to its report: the choice by validation, the figures on test, and the winner's plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from freehold.data import Population, Prepared
from freehold.plan import AlgorithmRef, Companion, Plan, Scalar
from freehold.report import Comparison, Tried, Tuned, Tuning
from freehold.report.tuning import DEFAULTS
from freehold.study.cell import CellResult, Validated
from freehold.study.compare import facts_of, row_of, test_share_of, told_skipped, versions
from freehold.study.settings import Trial
from freehold.study.source import HeldOut
from freehold.study.space import Dimension
from freehold.study.spec import with_spec
from freehold.study.trials import repeated
from freehold.tasks import TaskDefinition

BASELINE = "local"


class Asked(NamedTuple):
    """A study whose rows are to be tuned."""

    definition: TaskDefinition
    population: Population
    rows: tuple[Trial, ...]
    seeds: tuple[int, ...]
    held: Mapping[str, tuple[str, ...]]
    """Algorithm -> hyper-parameters that stay as they are."""
    strict: bool
    base: Plan | None
    """The plan that the study was given as."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """One algorithm and its trials; the first is the defaults."""

    row: Trial
    space: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    groups: tuple[tuple[int, ...], ...]
    """Trials that ride along with one another; all in one if they can."""
    alone: str
    """Why they do not ride; "" if they do."""


Tested = Mapping[str, tuple[Trial, dict[int, CellResult]]]
"""Row -> its trial and the result with each seed."""


def tuning_of(
    asked: Asked,
    searches: Sequence[Search],
    validated: Mapping[str, list[list[Validated]]],
    tested: Tested,
    source: HeldOut,
    *,
    trials: int,
    search_seed: int,
    newcomers: Sequence[str],
    command: str,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Tuning:
    """The report: what was tried, what was chosen, and what that changed."""
    chosen = {search.row.name: chosen_of(validated[search.row.name]) for search in searches}
    tuned = [_tuned(search, validated[search.row.name], chosen[search.row.name]) for search in searches]
    comparison = _comparison(asked, tested, source.prepared(asked.seeds[0]), newcomers, command)
    comparison = replace(
        comparison,
        notes=(*comparison.notes, *notes, *_notes(searches, tuned, asked)),
        warnings=(*warnings, *comparison.warnings),
    )
    winner = _winner(tuned, asked)
    return Tuning(
        trials=trials,
        search_seed=search_seed,
        algorithms=tuple(_paired(each, comparison, tested) for each in tuned),
        comparison=comparison,
        winner=winner,
        plan=_plan(winner, searches, chosen, asked, source) if winner else None,
    )


def chosen_of(validated: Sequence[Sequence[Validated]]) -> int | None:
    """Which trial is best, of trial -> what validation says with each seed: the largest mean of the metric over seeds, then the
    least loss, then the first. A trial that is lost with any seed is lost; None if all are."""
    best, at = (-math.inf, -math.inf), None
    for index, each in enumerate(validated):
        means = means_of(each)
        if means is None:
            continue
        key = means[0], -math.inf if means[1] is None else -means[1]
        if at is None or key > best:
            best, at = key, index
    return at


def with_settings(plan: Plan, hyperparameters: Mapping[str, Scalar]) -> Plan:
    """The same plan, its algorithm with other hyper-parameters."""
    algorithm = msgspec.structs.replace(plan.algorithm, hyperparameters=dict(hyperparameters))
    return msgspec.structs.replace(plan, algorithm=algorithm)


def unspecified(plan: Plan) -> Plan:
    """The same plan without its contribution spec, whose shapes may be those of other hyper-parameters."""
    return msgspec.structs.replace(plan, contribution=msgspec.structs.replace(plan.contribution, tensors=()))


def _comparison(asked: Asked, tested: Tested, first: Prepared, newcomers: Sequence[str], command: str) -> Comparison:
    definition = asked.definition
    alone = tested[BASELINE][1] if BASELINE in tested else {}
    return Comparison(
        study=definition.name,
        title=definition.title,
        problem="classification" if first.classes else "regression",
        metric=definition.metric,
        higher_is_better=True,
        clients=facts_of(first, newcomers),
        rows=tuple(row_of(trial, results, alone) for trial, results in tested.values()),
        baseline=BASELINE,
        test_share=test_share_of(first),
        seeds=asked.seeds,
        splits="fixed",
        command=command,
        versions=versions(),
        notes=asked.population.notes,
        warnings=(*first.warnings, *told_skipped(first)),
        noun=definition.noun,
    )


def _tuned(search: Search, validated: Sequence[Sequence[Validated]], chosen: int | None) -> Tuned:
    beside = {k for group in search.groups if len(group) > 1 for k in group}
    trials = []
    for k, (trial, said) in enumerate(zip(search.trials, validated, strict=True)):
        means = means_of(said)
        trials.append(
            Tried(
                hyperparameters=dict(trial.plan.algorithm.hyperparameters),
                validation=None if means is None else means[0],
                loss=None if means is None else means[1],
                lost="" if means is not None else next(each.lost for each in said if each.lost),
                rode=k in beside,
            )
        )
    space = tuple(dimension.told() for dimension in search.space)
    return Tuned(name=search.row.name, title=search.row.title, space=space, tried=tuple(trials), chosen=chosen, pair=None)


def _paired(each: Tuned, comparison: Comparison, tested: Tested) -> Tuned:
    """With the comparison of what was chosen and the defaults, where both were measured."""
    names = (each.name + DEFAULTS, each.name)
    if any(name not in tested for name in names):
        return each
    defaults = tested[names[0]][1]
    rows = tuple(row_of(*tested[name], defaults) for name in names)
    return replace(each, pair=replace(comparison, rows=rows, baseline=names[0]))


def means_of(each: Sequence[Validated]) -> tuple[float, float | None] | None:
    """The means over seeds of metric and loss; None if the trial is lost with any seed."""
    values = [said.metric for said in each if said.metric is not None]
    if len(values) < len(each):
        return None
    losses = [said.loss for said in each if said.loss is not None]
    return math.fsum(values) / len(values), math.fsum(losses) / len(losses) if len(losses) == len(each) else None


def _winner(tuned: Sequence[Tuned], asked: Asked) -> str:
    """The plan's own algorithm; else the best on validation, training alone left aside: no federation is needed for that."""
    known = [(best.validation, each.name) for each in tuned if each.name != BASELINE and (best := each.best) is not None]
    if asked.base is not None:
        own = asked.base.algorithm.name
        return own if any(each.name == own and each.best for each in tuned) else ""
    ordered = sorted(((value, name) for value, name in known if value is not None), key=lambda pair: -pair[0])
    return ordered[0][1] if ordered else ""


def _plan(winner: str, searches: Sequence[Search], chosen: Mapping[str, int | None], asked: Asked, source: HeldOut) -> Plan:
    """The winner as it was tuned, its companions as they were tuned."""
    plans = {s.row.name: s.trials[k].plan for s in searches if (k := chosen[s.row.name]) is not None}
    base, own = asked.base, plans[winner].algorithm
    names = [n for n in (BASELINE, "fedavg") if n != own.name] if base is None else [c.name for c in base.companions]
    kept = {c.name: c for c in base.companions} if base else {}
    companions = tuple(
        _companion(plans[name].algorithm) if name in plans else kept[name] for name in names if name in plans or kept
    )
    plan = msgspec.structs.replace(unspecified(base or plans[winner]), algorithm=own, companions=companions)
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, seed=asked.seeds[0]))
    return with_spec(repeated(plan, len(asked.seeds)), asked.definition, source.prepared(asked.seeds[0]))


def _companion(reference: AlgorithmRef) -> Companion:
    return Companion(name=reference.name, hyperparameters=reference.hyperparameters, wrappers=reference.wrappers)


def _notes(searches: Sequence[Search], tuned: Sequence[Tuned], asked: Asked) -> tuple[str, ...]:
    """How it was done, and what a reader should know before believing it."""
    notes = [
        "Trials were chosen by validation examples alone. The test examples are the same for all seeds, and no trial has seen "
        "them; only the chosen one and the defaults were run on them.",
    ]
    reasons: dict[str, list[str]] = {}
    for search in searches:
        if search.alone:
            reasons.setdefault(search.alone, []).append(search.row.title)
    notes += [f"Run one by one: {', '.join(titles)}; {why.rstrip('.')}." for why, titles in reasons.items()]
    alone = next((each.best for each in tuned if each.name == BASELINE and each.best is not None), None)
    others = [each.best.validation or 0.0 for each in tuned if each.name != BASELINE and each.best is not None]
    if alone is not None and alone.validation is not None and others and max(others) <= alone.validation:
        notes.append("Training alone, tuned as well, is at least as good on validation as every other algorithm.")
    edge = [f"{each.title} ({', '.join(names)})" for each in tuned if (names := _at_the_edge(each))]
    if edge:
        notes.append(f"Chosen near the end of its range, so a better value may lie beyond: {', '.join(edge)}.")
    if any(search.row.plan.privacy.unit != "none" for search in searches):
        notes.append("Each trial sees the same records: the ε of the plan is that of one run, and tuning is not part of it.")
    return tuple(notes)


def _at_the_edge(each: Tuned) -> list[str]:
    """Hyper-parameters whose chosen value lies in the outer twentieth of a range on a log scale."""
    found = []
    for one in each.space if each.best is not None and each.chosen else ():
        value = each.best.hyperparameters.get(one.name) if each.best else None
        if one.scale == "log" and isinstance(value, float):
            share = math.log(value / one.low) / math.log(one.high / one.low)
            found += [one.name] if not 0.05 <= share <= 0.95 else []
    return found
