"""A cell: one row of a comparison with one seed, from the initial model to the figures of each client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from freehold.algorithms import build_algorithm
from freehold.core import Algorithm, ClientResult, Tree, flatten, train, unflatten
from freehold.data import Prepared
from freehold.engines import METRICS, Feed, LoopEngine, VectorEngine, departing, guarded, planned_work
from freehold.plan import Plan, check_contribution
from freehold.study.checkpoint import Checkpoint, Running, damaged
from freehold.study.measure import Measured, measure
from freehold.study.settings import EngineName, Trial
from freehold.study.source import POOLED
from freehold.tasks import TaskDefinition, build_task

POINTS = 8
"""How many times a run is measured, evenly spread over its rounds, the last one included."""

SAVE_EVERY_S = 20.0
"""Seconds between two checkpoints of a running cell."""


class Interrupted(KeyboardInterrupt):
    """The study was told to stop, and left its state in `checkpoint` (None: it was told not to)."""

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__("interrupted")
        self.checkpoint = checkpoint


class Validated(msgspec.Struct, frozen=True, kw_only=True):
    """What validation says of one trial of a search, after its last round; means over the clients that took part."""

    metric: float | None = None
    """None: the trial is lost."""
    loss: float | None = None
    lost: str = ""
    """Why, if it is: it diverged."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell measured; JSON keeps it to the bit."""

    figures: dict[str, dict[str, float]]
    """client -> figures on its test examples after the last round."""
    best_figures: dict[str, dict[str, float]]
    """The same after the round that was best on validation."""
    best_round: int
    curve: list[tuple[int, float]]
    """(round, mean over the clients that took part of the metric on validation)."""
    losses: dict[str, list[float]]
    """client -> loss of each validation example after the last round."""
    right: dict[str, list[float]]
    """client -> whether each test example was right after the last round; empty for regression."""
    sent_bytes: int
    """What one client sends when it is asked in every round."""
    seconds: float
    validated: list[Validated] = []
    """Of a search: each of the cell's trials; nothing else is known of them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be run."""

    index: int
    """Of the row."""
    trial: Trial
    seed: int
    searched: tuple[Trial, ...] = ()
    """Not empty: trials of a search, which run side by side and of which nothing but validation is looked at; `trial` names
    them all."""

    @property
    def label(self) -> str:
        """The name of its files."""
        return f"row-{self.index}-seed-{self.seed}"


@dataclass(kw_only=True)
class _History:
    """What was measured so far, as JSON knows it."""

    points: list[dict[str, Any]] = field(default_factory=list)
    sent_bytes: int = 0


def run_cell(
    cell: Cell,
    definition: TaskDefinition,
    prepared: Prepared,
    *,
    engine: EngineName,
    newcomers: Sequence[str],
    checkpoint: Checkpoint | None,
    resume: bool,
    stop: Callable[[], bool],
    closed: Callable[[int], None],
) -> CellResult:
    """Train and measure. `stop` is asked after each round, `closed` is told its number.

    Raises Interrupted where `stop` says so, the state being saved; and what algorithms and engines raise.
    """
    begun = time.monotonic()
    plan = cell.trial.plan
    task = build_task(definition, prepared, plan, cell.seed)
    algorithm = guarded(build_algorithm(task, plan.algorithm, plan.contribution.dtype), plan)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=cell.seed)
    # Who trains alone does so whether it takes part or not.
    apart = () if algorithm.name == "local" else newcomers
    clients = [POOLED] if cell.trial.pooled else [c for c in prepared.clients if c not in apart]
    runner = engine_of(engine, algorithm, feed, plan)

    history, server, start = _History(), None, 0
    found = checkpoint.load_running(cell.label) if checkpoint and resume else None
    if found and checkpoint:
        if not fits(found, algorithm, clients, rounds=plan.training.rounds, metric=definition.metric):
            raise damaged(checkpoint.folder / cell.label)
        shared = algorithm.broadcast(algorithm.init())
        server, start = unflatten(found.server, algorithm.init()), found.rounds_done
        runner.store.restore({c: unflatten(found.personal[c], algorithm.enroll(shared)) for c in found.personal})
        history = _History(points=list(found.history["points"]), sent_bytes=found.history["sent_bytes"])

    def save(done: int, server: Tree) -> None:
        if checkpoint:
            states = {c: flatten(p) for c, p in runner.store.committed().items()}
            told = {"points": history.points, "sent_bytes": history.sent_bytes}
            checkpoint.save_running(cell.label, Running(rounds_done=done, server=flatten(server), personal=states, history=told))

    rounds = plan.training.rounds
    has_validation = any(len(rows["validation"]) for rows in prepared.rows.values())
    measured_at = {rounds} | ({round(rounds * i / POINTS) for i in range(1, POINTS)} if has_validation else set())
    saved = time.monotonic()
    last: Mapping[str, Mapping[str, Measured]] = {}
    training = train(
        algorithm, runner, clients, rounds=rounds, cohort=plan.round.cohort, seed=cell.seed, server=server, start=start
    )
    for report in training:
        done = report.round.index + 1
        sent = departing(algorithm, ClientResult(report.mean, {}, report.metrics))
        if plan.contribution.tensors:
            check_contribution(
                plan.contribution, {k: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in sent.items()}
            )
        history.sent_bytes += sum(t.numel() * t.element_size() for name, t in sent.items() if not name.startswith(METRICS))
        if done in measured_at:
            last = _measure_all(algorithm, runner, report.server, prepared, pooled=cell.trial.pooled)
            history.points.append(
                _point(done, last, definition.metric, taking_part=[c for c in prepared.clients if c not in newcomers])
            )
        closed(done)
        if done < rounds and (stop() or time.monotonic() - saved > SAVE_EVERY_S):
            save(done, report.server)
            saved = time.monotonic()
            if stop():
                raise Interrupted(str(checkpoint.folder) if checkpoint else None)
    result = _result(history, last, has_validation=has_validation, seconds=time.monotonic() - begun)
    if checkpoint:
        checkpoint.save_done(cell.label, msgspec.to_builtins(result))
    return result


def fits(found: Running, algorithm: Algorithm, clients: Sequence[str], *, rounds: int, metric: str) -> bool:
    """Whether a state is one between two rounds of this very run."""

    def alike(flat: Mapping[str, torch.Tensor], tree: Tree) -> bool:
        return {k: (t.shape, t.dtype) for k, t in flat.items()} == {k: (t.shape, t.dtype) for k, t in flatten(tree).items()}

    enrolled = algorithm.enroll(algorithm.broadcast(algorithm.init()))
    return (
        0 < found.rounds_done < rounds
        and found.personal.keys() <= set(clients)
        and all(alike(state, enrolled) for state in found.personal.values())
        # What a wrapper's server remembers may grow in the first round; what `init` has must be there.
        and flatten(algorithm.init()).keys() <= found.server.keys()
        and all(
            isinstance(point, dict)
            and isinstance(point.get("round"), int)
            and isinstance(point.get("mean"), float)
            and isinstance(point.get("test"), dict)
            and all(isinstance(figures, dict) and metric in figures for figures in point["test"].values())
            for point in found.history["points"]
        )
    )


def _result(history: _History, last: Mapping[str, Mapping[str, Measured]], *, has_validation: bool, seconds: float) -> CellResult:
    best = max(history.points, key=lambda p: p["mean"] if p["mean"] == p["mean"] else float("-inf"))
    return CellResult(
        figures={c: dict(m["test"].figures) for c, m in last.items()},
        best_figures=best["test"],
        best_round=best["round"] if has_validation else -1,
        curve=[(p["round"], p["mean"]) for p in history.points] if has_validation else [],
        losses={c: list(m["validation"].losses) for c, m in last.items()},
        right={c: list(m["test"].right) for c, m in last.items()},
        sent_bytes=history.sent_bytes,
        seconds=seconds,
    )


def engine_of(name: EngineName, algorithm: Algorithm, feed: Feed, plan: Plan) -> LoopEngine:
    """The engine of that name, with the work that the plan says."""
    work, adaptation = planned_work(plan)
    kind = VectorEngine if name == "vector" else LoopEngine
    said = plan.training
    return kind(algorithm, feed, work, adaptation=adaptation, weighting=said.weighting, most_weight=said.most_weight)


def _measure_all(
    algorithm: Algorithm, runner: LoopEngine, server: Tree, prepared: Prepared, *, pooled: bool
) -> dict[str, dict[str, Measured]]:
    shared = algorithm.broadcast(server)
    splits = ("validation", "test")
    if pooled:
        personal = runner.adapted(shared, POOLED)
        outputs: Mapping[str, Mapping[str, torch.Tensor]] = {
            c: {s: algorithm.outputs(shared, personal, prepared.x[prepared.rows[c][s]]) for s in splits} for c in prepared.clients
        }
    else:
        outputs = runner.predict(shared, prepared.clients, splits)
    return {
        c: {
            s: measure(
                algorithm.task, outputs[c][s], prepared.y[prepared.rows[c][s]], prepared.target_scale.get(c, (0.0, 1.0))[1]
            )
            for s in splits
        }
        for c in prepared.clients
    }


def _point(done: int, measured: Mapping[str, Mapping[str, Measured]], metric: str, taking_part: Sequence[str]) -> dict[str, Any]:
    values = [measured[c]["validation"].figures[metric] for c in taking_part]
    known = [v for v in values if v == v]
    return {
        "round": done,
        "mean": sum(known) / len(known) if known else float("nan"),
        "test": {c: dict(m["test"].figures) for c, m in measured.items()},
    }
