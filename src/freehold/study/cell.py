"""A cell: one row of a comparison with one seed, from the initial model to the figures of each client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from freehold.algorithms import build_algorithm
from freehold.core import Algorithm, ClientResult, Tree, flatten, train, tree_map, unflatten
from freehold.data import Prepared
from freehold.engines import (
    METRICS,
    Arena,
    Build,
    Choice,
    Feed,
    LoopEngine,
    Runner,
    Store,
    VectorEngine,
    departing,
    device_of,
    guarded,
    moved,
    planned_work,
)
from freehold.events import silent
from freehold.plan import Plan, check_contribution
from freehold.study.checkpoint import Checkpoint, Running, damaged
from freehold.study.measure import Measured, measure
from freehold.study.models import export_models, place_of
from freehold.study.settings import Settings, Trial
from freehold.study.source import POOLED
from freehold.study.states import personal_states, remembered
from freehold.tasks import TaskDefinition, build_task

POINTS = 8
"""How many times a run is measured, evenly spread over its rounds, the last one included."""

CPU = torch.device("cpu")

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
    execution: dict[str, Any] = {}
    """How it was computed, as `Execution.told` says."""
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

    def told(self, engine: Runner) -> dict[str, Any]:
        """All of it, and the executor and the chunk that a resumed run has to go on with."""
        now, chosen = engine.execution, engine.execution.choice
        choice = chosen and msgspec.to_builtins(replace(chosen, executor=now.executor, chunk=now.chunk))  # type: ignore[arg-type]
        return {"points": self.points, "sent_bytes": self.sent_bytes, "choice": choice}


def run_cell(
    cell: Cell,
    definition: TaskDefinition,
    prepared: Prepared,
    *,
    settings: Settings,
    crew: Crew | None = None,
    newcomers: Sequence[str],
    checkpoint: Checkpoint | None,
    stop: Callable[[], bool],
    closed: Callable[[int], None],
    models: Path | None = None,
) -> CellResult:
    """Train and measure, on the workers of a crew if there is one. `stop` is asked after each round, `closed` is told its
    number; `models` is where to export to.

    Raises Interrupted where `stop` says so, the state being saved; and what algorithms and engines raise.
    """
    begun = time.monotonic()
    plan = cell.trial.plan
    device = device_of(settings.device)
    task = moved(build_task(definition, prepared, plan, cell.seed), device)
    algorithm = guarded(build_algorithm(task, plan.algorithm, plan.contribution.dtype), plan)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=cell.seed).to(device)
    apart = set(newcomers)
    part = [c for c in prepared.clients if c not in apart]
    # Who trains alone does so whether it takes part or not.
    clients = [POOLED] if cell.trial.pooled else list(prepared.clients) if algorithm.name == "local" else part
    history, start = _History(), 0
    server: Tree | None = None
    found = checkpoint.load_running(cell.label) if checkpoint and settings.resume else None
    if found and checkpoint:
        if not fits(found, algorithm, clients, rounds=plan.training.rounds, metric=definition.metric):
            raise damaged(checkpoint.folder / cell.label)
        server, start = _on(device, unflatten(found.server, algorithm.init())), found.rounds_done
        history = _History(points=list(found.history["points"]), sent_bytes=found.history["sent_bytes"])

    rounds = plan.training.rounds
    has_validation = any(len(rows["validation"]) for rows in prepared.rows.values())
    measured_at = {rounds} | ({round(rounds * i / POINTS) for i in range(1, POINTS)} if has_validation else set())
    asked = (plan.round.cohort or len(clients)) * rounds
    build = Blueprint(
        definition=definition,
        about=_without_rows(prepared),
        plan=plan,
        seed=cell.seed,
        settings=replace(settings, listener=silent),
        choice=_choice(found),
    )
    place = checkpoint.arena(cell.label) if checkpoint else None
    with _engine(build, algorithm, feed, clients, crew=crew, asked=asked, folder=place, found=found) as runner:
        saved = time.monotonic()
        last: Mapping[str, Mapping[str, Measured]] = {}
        for report in train(
            algorithm, runner, clients, rounds=rounds, cohort=plan.round.cohort, seed=cell.seed, server=server, start=start
        ):
            done, server = report.round.index + 1, report.server
            history.sent_bytes += _sent_bytes(algorithm, plan, ClientResult(report.mean, {}, report.metrics))
            if done in measured_at:
                last = _measure_all(algorithm, runner, server, prepared, pooled=cell.trial.pooled)
                history.points.append(_point(done, last, definition.metric, taking_part=part))
            closed(done)
            if done < rounds and (stop() or time.monotonic() - saved > SAVE_EVERY_S):
                if checkpoint:
                    _save(checkpoint, cell, done, server, runner.store, history.told(runner))
                saved = time.monotonic()
                if stop():
                    raise Interrupted(str(checkpoint.folder) if checkpoint else None)
        if models and server is not None:
            about = {"algorithm": algorithm.name, "task": definition.name, "seed": str(cell.seed), "rounds": str(rounds)}
            export_models(
                place_of(models, cell.trial.name, cell.seed), algorithm, runner, server, about=about,
                clients=[POOLED] if cell.trial.pooled else prepared.clients,
            )  # fmt: skip
    result = _result(history, last, has_validation=has_validation, seconds=time.monotonic() - begun)
    result = msgspec.structs.replace(result, execution=dict(runner.execution.told()))
    if checkpoint:
        checkpoint.save_done(cell.label, msgspec.to_builtins(result))
    return result


@contextmanager
def _engine(
    build: Blueprint,
    algorithm: Algorithm,
    feed: Feed,
    clients: Sequence[str],
    *,
    crew: Crew | None,
    asked: int,
    folder: Path | None,
    found: Running | None,
) -> Iterator[Runner]:
    """The engine of a cell, with the personal states of the run that is continued. A crew keeps its own."""
    left, sealed = (found.personal, found.arena) if found else ({}, None)
    with ExitStack() as stack:
        asked = asked if crew is None else 0
        states = stack.enter_context(personal_states(algorithm, clients, asked=asked, folder=folder, found=left, sealed=sealed))
        if crew is None:
            engine = engine_of(build.settings, algorithm, feed, build.plan, choice=build.choice)
            engine.store = states
            yield engine
            return
        shared = crew.engine(algorithm, feed, build)
        shared.store.restore(states.committed())
        stack.close()
        yield shared


def _save(checkpoint: Checkpoint, cell: Cell, done: int, server: Tree, states: Store, history: dict[str, Any]) -> None:
    personal, sealed = remembered(states)
    server = _on(CPU, server)
    running = Running(rounds_done=done, server=flatten(server), personal=personal, history=history, arena=sealed)
    checkpoint.save_running(cell.label, running)
    if sealed is not None and isinstance(states, Arena):
        states.keep(sealed)


def _sent_bytes(algorithm: Algorithm, plan: Plan, result: ClientResult) -> int:
    """What one client sent in a round; it has to be what the plan says."""
    sent = departing(algorithm, result)
    if plan.contribution.tensors:
        check_contribution(plan.contribution, {k: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in sent.items()})
    return sum(t.numel() * t.element_size() for name, t in sent.items() if not name.startswith(METRICS))


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


class Crew(Protocol):
    """Workers that share the clients of one cell after the other."""

    def engine(self, algorithm: Algorithm, feed: Feed, build: Build) -> Runner:
        """The engine of a cell; each worker has one that it builds itself."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """How a worker builds the engine of a cell: functions do not travel, but what they are made from does."""

    definition: TaskDefinition
    about: Prepared
    """Without rows: the worker has them in its feed."""
    plan: Plan
    seed: int
    settings: Settings
    choice: Choice | None

    def __call__(self, feed: Feed) -> LoopEngine:
        """The engine."""
        prepared = replace(self.about, x=feed.x, y=feed.y, rows=feed.rows)
        task = build_task(self.definition, prepared, self.plan, self.seed)
        algorithm = guarded(build_algorithm(task, self.plan.algorithm, self.plan.contribution.dtype), self.plan)
        # Each would measure something else, and only rounding may depend on the number of workers.
        return engine_of(self.settings, algorithm, feed, self.plan, choice=self.choice, rounds=0)


def _without_rows(prepared: Prepared) -> Prepared:
    return replace(prepared, x=prepared.x[:0], y=prepared.y[:0], rows={})


def engine_of(
    settings: Settings, algorithm: Algorithm, feed: Feed, plan: Plan, *, choice: Choice | None = None, rounds: int | None = None
) -> LoopEngine:
    """The engine that the settings name, with the work that the plan says; `choice`: that of a run that is continued.

    `rounds` that are to come, if not those of the plan; with 0 nothing is measured before executors are chosen.
    """
    work, adaptation = planned_work(plan)
    said = plan.training
    weights: dict[str, Any] = {"weighting": said.weighting, "most_weight": said.most_weight}
    if settings.engine == "loop":
        return LoopEngine(algorithm, feed, work, adaptation=adaptation, **weights)
    to_come = said.rounds if rounds is None else rounds
    how: dict[str, Any] = {"executor": settings.executor, "rounds": to_come, "choice": choice, "explain": settings.explain}
    return VectorEngine(algorithm, feed, work, adaptation=adaptation, **weights, **how)


def _choice(found: Running | None) -> Choice | None:
    said = found.history.get("choice") if found else None
    return None if said is None else msgspec.convert(said, Choice)


def _on(device: torch.device, tree: Tree) -> Tree:
    return tree_map(lambda t: t.to(device), tree)


def _measure_all(
    algorithm: Algorithm, runner: Runner, server: Tree, prepared: Prepared, *, pooled: bool
) -> dict[str, dict[str, Measured]]:
    shared = algorithm.broadcast(server)
    splits = ("validation", "test")
    if pooled:
        personal = runner.adapted(shared, POOLED)
        outputs: Mapping[str, Mapping[str, torch.Tensor]] = {
            c: {s: algorithm.outputs(shared, personal, runner.feed.x[prepared.rows[c][s]]).to(CPU) for s in splits}
            for c in prepared.clients
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
