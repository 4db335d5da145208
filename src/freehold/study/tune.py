"""Tuning: the same number of trials for each algorithm, chosen by validation examples, and what that changed on test examples.

A search cell (`freehold.study.search`) runs trials of one algorithm with one seed and sees no test example. Then the chosen
trial and the defaults are ordinary cells of a study, so their figures are those that the plan gives when it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from freehold.core import algorithm_entry, algorithm_names, checked
from freehold.data import Prepared
from freehold.errors import Diverged, NoValidation, UsageError
from freehold.plan import Plan, Scalar, load_plan
from freehold.report import Tuning
from freehold.report.tuning import DEFAULTS
from freehold.study.api import (
    SEEDS,
    Data,
    Reading,
    adjusted,
    of_plan,
    options_of,
    partitioned,
    read,
    refuse_unknown,
    seeds_of,
    source_of,
    training_of,
)
from freehold.study.cell import Cell, Validated
from freehold.study.compare import checkpoint_of
from freehold.study.noised import check_allowed
from freehold.study.runner import Job, run_cells
from freehold.study.said import call
from freehold.study.search import scalars_of, together
from freehold.study.settings import Settings, Trial
from freehold.study.source import HeldOut
from freehold.study.space import space_of, tried
from freehold.study.traveling import variant
from freehold.study.trials import Settings as Hyperparameters
from freehold.study.trials import fitting, trials_for, trials_of
from freehold.study.tuned import BASELINE, Asked, Search, Tested, chosen_of, means_of, tuning_of, unspecified, with_settings
from freehold.study.watch import watch
from freehold.tasks import build_task, under

_SIDE_BY_SIDE = 32
"""Trials of one cell, at most: what is lost at a kill, and what one process holds, stay small."""


def tune(
    data: Data | Plan,
    *,
    trials: int,
    algorithms: Sequence[str] | str | None = None,
    search_seed: int = 0,
    seeds: int | Sequence[int] | None = None,
    clients: int | None = None,
    partition: str | None = None,
    rounds: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    hyperparameters: Hyperparameters | None = None,
    min_examples: int | None = None,
    devices: bool = False,
    test: str | Path | None = None,
    plan_data: Data | None = None,
    bundle: bytes | None = None,
    settings: Settings | None = None,
    command: str | None = None,
    **reading: Unpack[Reading],
) -> Tuning:
    """Try each algorithm with `trials` settings, its defaults first, and say what the best one on validation changes on test.

    `data`: as for `compare`, or a plan or the file of one, with `plan_data` where its task has none. `algorithms`: all installed
    ones by default; training alone is always tuned too. What `hyperparameters` says stays as it is and is not tuned.
    `search_seed`: which points of the ranges are tried. Raises a FreeholdError that says what to do.
    """
    refuse_unknown(reading, tune)
    if trials < 1:
        raise UsageError(f"{trials} trials were asked for.", hint="Ask for at least one; the first is the defaults.")
    given = {"trials": trials, "algorithms": algorithms, "seeds": seeds, "rounds": rounds, "lr": lr, "search_seed": search_seed}
    command = command or call("tune", "plan" if isinstance(data, Plan) else data, {**reading, **given})
    settings = settings or Settings(listener=watch())
    if isinstance(data, Plan) or (isinstance(data, str | Path) and str(data).endswith(".toml")):
        plan = data if isinstance(data, Plan) else load_plan(data)
        asked = _plan_asked(plan, plan_data, bundle, seeds, **reading)
    else:
        definition, population = read(data, test=test, **reading)
        definition = adjusted(definition, population, lr, min_examples, devices)
        options = options_of(clients, partition)
        names = (algorithms,) if isinstance(algorithms, str) else algorithms
        rows = trials_for(
            definition,
            tuple(n for n in algorithm_names() if _tunable(n)) if names is None else tuple(dict.fromkeys((BASELINE, *names))),
            hyperparameters=hyperparameters,
            training=training_of(definition.training, rounds, epochs, batch_size),
            options=options,
        )
        common = tuple((hyperparameters or {}).get("*", {}))
        held = {row.name: (*common, *(hyperparameters or {}).get(variant(row.name)[0], {})) for row in rows}
        population = partitioned(population, definition, options)
        asked = Asked(definition, population, rows, seeds_of(seeds, range(SEEDS)), held, names is not None, None)
    return _tune(asked, trials, search_seed, settings, command)


def _tunable(name: str) -> bool:
    return bool(space_of(algorithm_entry(name), {}))


def _plan_asked(
    plan: Plan, data: Data | None, bundle: bytes | None, seeds: int | Sequence[int] | None, **reading: Unpack[Reading]
) -> Asked:
    definition, population = of_plan(plan, data, bundle, **reading)
    definition = under(definition, plan)
    population = partitioned(population, definition, plan.task.options)
    first, count = plan.training.seed, plan.repeats if seeds is None else seeds
    chosen = tuple(range(first, first + count)) if isinstance(count, int) and count > 0 else seeds_of(count, ())
    rows = tuple(replace(row, required=False, plan=unspecified(row.plan)) for row in trials_of(plan))
    return Asked(definition, population, rows, chosen, {}, True, plan)


def _tune(asked: Asked, trials: int, search_seed: int, settings: Settings, command: str) -> Tuning:
    definition, seeds = asked.definition, asked.seeds
    source = HeldOut(drawn=source_of(definition, asked.population), first=seeds[0])
    first = source.prepared(seeds[0])
    newcomers = _newcomers(first, settings)
    _check_validation(first, newcomers)
    kept, left_out = fitting(asked.rows, build_task(definition, first, asked.rows[0].plan, seeds[0]))
    if not kept or (asked.strict and left_out):
        raise UsageError(left_out[0], hint="Choose other algorithms, or another model.")
    check_allowed(definition, first, kept)
    searches = [_searched(row, asked, trials, search_seed, first, settings) for row in kept]
    every = [trial for search in searches for trial in search.trials]
    checkpoint = checkpoint_of(every, seeds, settings, first, newcomers)
    job = Job(definition=definition, source=source, newcomers=newcomers, settings=settings, checkpoint=checkpoint)

    validated = _search(searches, seeds, job)
    chosen = {search.row.name: chosen_of(validated[search.row.name]) for search in searches}
    if all(index is None for index in chosen.values()):
        raise Diverged(
            "Every trial of every algorithm diverged, the defaults among them.",
            hint="Lower --lr, or look at the data with `freehold data check`.",
        )
    tested, lost = _test(searches, chosen, validated, seeds, job)
    tuning = tuning_of(
        asked,
        searches,
        validated,
        tested,
        source,
        trials=trials,
        search_seed=search_seed,
        newcomers=newcomers,
        command=command,
        notes=left_out,
        warnings=lost,
    )
    if checkpoint:
        checkpoint.remove()
    return tuning


def _newcomers(prepared: Prepared, settings: Settings) -> tuple[str, ...]:
    if settings.newcomers >= len(prepared.clients):
        raise UsageError(
            f"{settings.newcomers} of {len(prepared.clients)} clients would be newcomers, so nobody would train.",
            hint="Leave at least one client in.",
        )
    return prepared.clients[len(prepared.clients) - settings.newcomers :]


def _check_validation(prepared: Prepared, newcomers: Sequence[str]) -> None:
    if not any(len(prepared.rows[client]["validation"]) for client in prepared.clients if client not in newcomers):
        raise NoValidation(
            "No client has validation examples, so there is nothing to choose by; test examples are never looked at for that.",
            hint="Mark validation rows in the column of splits, or leave --split out and let Freehold split the data.",
        )


def _searched(row: Trial, asked: Asked, trials: int, search_seed: int, prepared: Prepared, settings: Settings) -> Search:
    reference = row.plan.algorithm
    known = algorithm_entry(reference.name).hyperparameters
    given = checked(reference.name, known, reference.hyperparameters)
    space = space_of(algorithm_entry(reference.name), given, asked.held.get(row.name, ()))
    defaults = {one.name: value for one in space if (value := known[one.name].default) is not None}  # said, so that all say it
    if not space and row.name == BASELINE and len(asked.rows) > 1:
        each: tuple[dict[str, Scalar], ...] = (given,)  # training alone is there for the others' sake
    else:
        each = tried(row.title, space, {**defaults, **given}, trials=trials, seed=search_seed)
    plans = [with_settings(row.plan, hyperparameters) for hyperparameters in each]
    named = tuple(Trial(name=f"{row.name}#{k}", title=f"{row.title}, trial {k + 1}", plan=plan) for k, plan in enumerate(plans))
    groups, why = _grouped(named, asked, prepared, settings)
    return Search(row=row, space=space, trials=named, groups=groups, alone=why)


def _grouped(
    trials: tuple[Trial, ...], asked: Asked, prepared: Prepared, settings: Settings
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Trials that differ in scalars alone, as far as they can ride; those that differ in structure run apart anyhow."""
    alike: dict[object, list[int]] = {}
    for k, trial in enumerate(trials):
        floats = frozenset(scalars_of((trial,)))
        rest = tuple(sorted((n, v) for n, v in trial.plan.algorithm.hyperparameters.items() if n not in floats))
        alike.setdefault((floats, rest), []).append(k)
    largest = max(alike.values(), key=len)
    why = "no two trials differ in scalars alone"
    if len(largest) > 1:
        rides, why = together(asked.definition, prepared, [trials[k] for k in largest[:2]], settings, asked.seeds[0])
        if rides:
            parts = [group[i : i + _SIDE_BY_SIDE] for group in alike.values() for i in range(0, len(group), _SIDE_BY_SIDE)]
            return tuple(tuple(part) for part in parts), ""
    return tuple((k,) for k in range(len(trials))), why if len(trials) > 1 else ""


def _search(searches: Sequence[Search], seeds: Sequence[int], job: Job) -> dict[str, list[list[Validated]]]:
    """Algorithm -> trial -> what validation says with each seed."""
    places = [(search, group) for search in searches for group in search.groups]
    cells = [
        Cell(index=i, trial=search.row, seed=seed, searched=tuple(search.trials[k] for k in group))
        for seed in seeds
        for i, (search, group) in enumerate(places)
    ]
    ran = run_cells(cells, job)
    found: dict[str, list[list[Validated]]] = {s.row.name: [[] for _ in s.trials] for s in searches}
    for cell in cells:
        search, group = places[cell.index]
        for k, said in zip(group, ran.results[cell.label].validated, strict=True):
            found[search.row.name][k].append(said)
    return found


def _test(
    searches: Sequence[Search],
    chosen: Mapping[str, int | None],
    validated: Mapping[str, list[list[Validated]]],
    seeds: Sequence[int],
    job: Job,
) -> tuple[Tested, tuple[str, ...]]:
    """Run what was chosen, and the defaults, on test examples; what diverges there is left out, with a sentence."""
    rows: list[Trial] = []
    for search in searches:
        at, name = chosen[search.row.name], search.row.name
        if at is None:
            continue
        title = f"{search.row.title}, tuned" if at else search.row.title
        if at and means_of(validated[name][0]) is not None:
            rows.append(replace(search.row, name=name + DEFAULTS, title=f"{search.row.title}, defaults"))
        rows.append(replace(search.row, name=name, title=title, plan=search.trials[at].plan))
    start = sum(len(search.groups) for search in searches)
    cells = [Cell(index=start + i, trial=row, seed=seed) for seed in seeds for i, row in enumerate(rows)]
    ran = run_cells(cells, job)
    lost = {cell.trial.name for cell in cells if cell.label in ran.diverged}
    results = {
        row.name: (row, {c.seed: ran.results[c.label] for c in cells if c.trial is row}) for row in rows if row.name not in lost
    }
    told = tuple(f"{row.title} diverged after it was chosen, and is left out." for row in rows if row.name in lost)
    return results, told
