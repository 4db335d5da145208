"""A comparison: every row with every seed on the same clients, and what each client would serve."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from freehold.algorithms import prefer
from freehold.data import Prepared
from freehold.engines import device_of
from freehold.errors import CheckpointError, Diverged, UsageError
from freehold.events import Event
from freehold.plan import digest
from freehold.report import ClientFacts, Comparison, Row, SeedResult
from freehold.study.cell import Cell, CellResult
from freehold.study.checkpoint import Checkpoint
from freehold.study.runner import Job, run_cells
from freehold.study.settings import Settings, Trial
from freehold.study.source import Source, fingerprint
from freehold.study.trials import fitting
from freehold.tasks import TaskDefinition, build_task

SELECT = "select"
SERVE = "What each would serve"


def run_comparison(
    definition: TaskDefinition,
    source: Source,
    trials: Sequence[Trial],
    *,
    seeds: Sequence[int],
    settings: Settings,
    command: str,
    baseline: str = "local",
    notes: Sequence[str] = (),
    strict: bool = False,
) -> Comparison:
    """Run all rows with all seeds.

    A row that the model does not allow is left out with a note, or raises where `strict`. A row that diverges with any seed is
    left out with a warning that says where; it raises if it is the baseline or required, or if no other row is left. Raises
    Interrupted after Ctrl-C.
    """
    device_of(settings.device)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"Seeds {list(seeds)} are empty or repeat themselves.", hint="Give each seed once.")
    first = source.prepared(seeds[0])
    task = build_task(definition, first, trials[0].plan, seeds[0])
    kept, left_out = fitting(trials, task)
    if not kept or (strict and left_out):
        raise UsageError(left_out[0], hint="Choose other algorithms, or another model.")
    if settings.newcomers >= len(first.clients):
        raise UsageError(
            f"{settings.newcomers} of {len(first.clients)} clients would be newcomers, so nobody would train.",
            hint="Leave at least one client in.",
        )
    newcomers = first.clients[len(first.clients) - settings.newcomers :]
    checkpoint = checkpoint_of(kept, seeds, settings, first, newcomers)
    cells = [Cell(index=i, trial=t, seed=s) for s in seeds for i, t in enumerate(kept)]
    required = frozenset({baseline, *(t.name for t in kept if t.required)})
    job = Job(
        definition=definition, source=source, newcomers=newcomers, settings=settings, checkpoint=checkpoint, required=required
    )
    ran = run_cells(cells, job)
    lost = [cell for cell in cells if cell.label in ran.diverged]
    kept, diverged = _without(kept, lost, ran.diverged, baseline)
    by_row = {t.name: {c.seed: ran.results[c.label] for c in cells if c.trial is t} for t in kept}
    rows = [row_of(t, by_row[t.name], by_row.get(baseline, {})) for t in kept]
    served = _select_row(definition, by_row, seeds)
    if checkpoint:
        checkpoint.remove()
    return Comparison(
        study=definition.name,
        title=definition.title,
        problem="classification" if first.classes or task.classes else "regression",
        metric=definition.metric,
        higher_is_better=True,
        clients=facts_of(first, newcomers),
        rows=(*rows, *served),
        baseline=baseline,
        test_share=test_share_of(first),
        seeds=tuple(seeds),
        splits=source.splits,
        command=command,
        versions=versions(),
        notes=(*notes, *left_out, *_fallbacks(rows)),
        warnings=(*diverged, *first.warnings, *told_skipped(first), *_empty(rows)),
        noun=definition.noun,
    )


def versions() -> dict[str, str]:
    """What computed this."""
    return {
        "freehold": version("freehold"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def checkpoint_of(
    trials: Sequence[Trial], seeds: Sequence[int], settings: Settings, first: Prepared, newcomers: Sequence[str]
) -> Checkpoint | None:
    """Where this study is kept while it runs; None: nowhere. CheckpointError where there is nothing to resume."""
    if settings.checkpoint is None:
        if settings.resume:
            raise UsageError("There is no folder to resume from.", hint="Say where the checkpoints are: --checkpoint DIR.")
        return None
    identity = {
        "plans": [digest(t.plan) for t in trials],
        "rows": [[t.name, t.pooled] for t in trials],
        "seeds": list(seeds),
        # On Ray it is the vector engine too, so that a study goes on without the cluster.
        "engine": ["vector" if settings.engine == "ray" else settings.engine, settings.executor, settings.device],
        "data": fingerprint(first),
        "newcomers": list(newcomers),
        "versions": versions(),
    }
    found = Checkpoint.of(settings.checkpoint, identity)
    if settings.resume:
        found.take_back()
    if settings.resume and not found.exists():
        raise CheckpointError(
            f"There is nothing to resume: {found.folder} does not exist.",
            hint="Command, data and versions must be those of the interrupted run. Leave out --resume to start anew.",
        )
    if not settings.resume and (kept := found.set_aside()) is not None:
        settings.listener(Event("checkpoint.set_aside", {"folder": str(kept)}))
    return found


def _without(
    trials: Sequence[Trial], lost: Sequence[Cell], why: Mapping[str, Diverged], baseline: str
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """The rows that have all their seeds, and what to say of the others; Diverged if nothing is left to compare."""
    names = {cell.trial.name for cell in lost}
    kept = tuple(trial for trial in trials if trial.name not in names)
    if lost and not any(trial.name != baseline for trial in kept):
        raise why[lost[0].label]
    firsts = {cell.trial.name: cell for cell in reversed(lost)}
    return kept, tuple(
        f"{trial.title} diverged with seed {firsts[trial.name].seed} and is left out. {why[firsts[trial.name].label].message}"
        for trial in trials
        if trial.name in names
    )


def row_of(trial: Trial, results: Mapping[int, CellResult], alone: Mapping[int, CellResult]) -> Row:
    """A row of a report, with its differences to `alone`, seed by seed."""
    reference = trial.plan.algorithm
    return Row(
        name=trial.name,
        title=trial.title,
        algorithm=reference.name,
        hyperparameters=dict(reference.hyperparameters),
        results=tuple(_seed_result(seed, result, alone.get(seed)) for seed, result in results.items()),
        published=trial.published,
        published_std=trial.published_std,
        seconds=sum(r.seconds for r in results.values()),
        sent_bytes=next(iter(results.values())).sent_bytes,
        execution=next(iter(results.values())).execution,
        reference=trial.pooled,
    )


def _seed_result(seed: int, result: CellResult, alone: CellResult | None) -> SeedResult:
    return SeedResult(
        seed=seed,
        figures=result.figures,
        curve=tuple(result.curve),
        best_round=result.best_round,
        best_figures=result.best_figures if result.best_round >= 0 else {},
        paired_se={c: _paired_se(right, alone.right[c]) for c, right in result.right.items() if len(right) > 1} if alone else {},
    )


def _paired_se(right: Sequence[float], alone: Sequence[float]) -> float:
    difference = np.asarray(right) - np.asarray(alone)
    return float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("nan")


def _select_row(definition: TaskDefinition, by_row: Mapping[str, Mapping[int, CellResult]], seeds: Sequence[int]) -> list[Row]:
    """What each client would serve: the best of alone, shared and personal by its own validation examples."""
    candidates = {"local": "local", "shared": "fedavg", "personal": definition.personal}
    if any(name not in by_row for name in candidates.values()):
        return []
    results = []
    for seed in seeds:
        cells = {kind: by_row[name][seed] for kind, name in candidates.items()}
        if not any(cells["local"].losses.values()):
            return []  # without validation examples there is nothing to choose by
        choice = {}
        for client in cells["local"].figures:
            losses = torch.tensor([cells[kind].losses[client] for kind in candidates], dtype=torch.float64)
            picked = int(prefer(losses, torch.ones(losses.shape[1], dtype=torch.bool)).argmax())
            choice[client] = list(candidates)[picked]
        right = {c: cells[kind].right[c] for c, kind in choice.items()}
        results.append(
            SeedResult(
                seed=seed,
                figures={c: cells[kind].figures[c] for c, kind in choice.items()},
                served=choice,
                paired_se={c: _paired_se(r, cells["local"].right[c]) for c, r in right.items() if len(r) > 1},
            )
        )
    return [Row(name=SELECT, title=SERVE, algorithm=SELECT, hyperparameters=candidates, results=tuple(results))]


def facts_of(prepared: Prepared, newcomers: Sequence[str]) -> tuple[ClientFacts, ...]:
    """Who the clients are."""
    facts = []
    for client in prepared.clients:
        rows = prepared.rows[client]
        sizes = {name: len(where) for name, where in rows.items()}
        y = prepared.y[torch.cat(list(rows.values()))]
        labels = {name: float((y == k).double().mean()) for k, name in enumerate(prepared.classes)}
        facts.append(
            ClientFacts(
                name=client,
                examples=sum(sizes.values()),
                train=sizes["train"],
                validation=sizes["validation"],
                test=sizes["test"],
                labels=labels,
                took_part=client not in newcomers,
            )
        )
    return tuple(facts)


def test_share_of(prepared: Prepared) -> float:
    """Test examples per training example."""
    sizes = {name: sum(len(prepared.rows[c][name]) for c in prepared.clients) for name in ("train", "test")}
    return sizes["test"] / max(1, sizes["train"])


def _fallbacks(rows: Sequence[Row]) -> list[str]:
    """What an executor could not take, said once however many rows met it."""
    return list(dict.fromkeys(f"Executor {line}" for row in rows for line in row.execution.get("fallbacks", ())))


def _empty(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.execution.get("skipped", ())))
    return [f"Skipped in training, without training data: {', '.join(names)}."] if names else []


def told_skipped(prepared: Prepared) -> tuple[str, ...]:
    """How many clients were too small, if any."""
    count = len(prepared.skipped)
    many = "s had too few examples and were" if count > 1 else " had too few examples and was"
    return (f"{count} client{many} skipped.",) if count else ()
