"""A cell of a search: trials of one algorithm with one seed, side by side, and what validation says of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from freehold.algorithms import Family, build_algorithm, family_of
from freehold.core import Algorithm, Round, Task, Tree, flatten, train, unflatten
from freehold.data import Prepared
from freehold.engines import Feed, LoopEngine, SweepEngine, guarded, lost_of, pays, planned_work, riding
from freehold.errors import Diverged, NotBatchable
from freehold.plan import Plan
from freehold.study.cell import SAVE_EVERY_S, Cell, CellResult, Interrupted, Validated, engine_of, fits
from freehold.study.checkpoint import Checkpoint, Running, damaged
from freehold.study.measure import measure
from freehold.study.settings import Settings, Trial
from freehold.study.source import without_test
from freehold.tasks import TaskDefinition, build_task


class _Ready(NamedTuple):
    """What is trained, and what predicts: outputs of a client [n, K, ...] in the second axis of which trials stand."""

    algorithm: Algorithm
    engine: LoopEngine
    trials: int


def search_cell(
    cell: Cell,
    definition: TaskDefinition,
    prepared: Prepared,
    *,
    settings: Settings,
    newcomers: Sequence[str],
    checkpoint: Checkpoint | None,
    stop: Callable[[], bool],
    closed: Callable[[int], None],
) -> CellResult:
    """Train, and look at validation examples; there are no test examples in here. As `run_cell`, but a trial that diverges is
    lost, and no error."""
    begun = time.monotonic()
    prepared = without_test(prepared)
    plan = cell.searched[0].plan
    task = build_task(definition, prepared, plan, cell.seed)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=cell.seed)
    ready = _ready(task, feed, cell.searched, settings)
    taking_part = [c for c in prepared.clients if c not in newcomers]
    clients = list(prepared.clients) if ready.algorithm.name == "local" else taking_part
    rounds = plan.training.rounds

    server, start = None, 0
    found = checkpoint.load_running(cell.label) if checkpoint and settings.resume else None
    if found and checkpoint:
        if not fits(found, ready.algorithm, clients, rounds=rounds, metric=definition.metric):
            raise damaged(checkpoint.folder / cell.label)
        shared = ready.algorithm.broadcast(ready.algorithm.init())
        server, start = unflatten(found.server, ready.algorithm.init()), found.rounds_done
        first = ready.algorithm.enroll(shared)
        ready.engine.store.restore({c: unflatten(state, first) for c, state in found.personal.items()})

    def save(done: int, server: Tree) -> None:
        if checkpoint:
            states = {c: flatten(p) for c, p in ready.engine.store.committed().items()}
            told = {"points": [], "sent_bytes": 0}
            checkpoint.save_running(cell.label, Running(rounds_done=done, server=flatten(server), personal=states, history=told))

    saved = time.monotonic()
    cohort = plan.round.cohort
    try:
        for report in train(
            ready.algorithm, ready.engine, clients, rounds=rounds, cohort=cohort, seed=cell.seed, server=server, start=start
        ):
            done, last = report.round.index + 1, report.server
            closed(done)
            if done < rounds and (stop() or time.monotonic() - saved > SAVE_EVERY_S):
                save(done, last)
                saved = time.monotonic()
                if stop():
                    raise Interrupted(str(checkpoint.folder) if checkpoint else None)
        validated = _validated(ready, last, prepared, taking_part, definition.metric)
    except Diverged as error:  # of a trial by itself; side by side they are lost one by one
        validated = [Validated(lost=error.message)] * ready.trials
    result = CellResult(
        figures={},
        best_figures={},
        best_round=-1,
        curve=[],
        losses={},
        right={},
        sent_bytes=0,
        seconds=time.monotonic() - begun,
        validated=validated,
    )
    if checkpoint:
        checkpoint.save_done(cell.label, msgspec.to_builtins(result))
    return result


def together(
    definition: TaskDefinition, prepared: Prepared, trials: Sequence[Trial], settings: Settings, seed: int
) -> tuple[bool, str]:
    """Whether these trials can and should ride along with one another, and if not, why; found by one update of one client."""
    if settings.engine != "vector" or settings.executor == "loop":
        return (
            False,
            "the loop runs one client at a time" if settings.engine != "ray" else "on Ray each worker has its own clients",
        )
    task = build_task(definition, prepared, trials[0].plan, seed)
    if not pays(task):
        return False, "of a model of this size, trials are no faster side by side"
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=seed)
    ready = _ready(task, feed, trials, settings)
    client = min(prepared.clients, key=feed.size)
    shared = ready.algorithm.broadcast(ready.algorithm.init())
    try:
        ready.engine.collect(Round(0, 1, 1), shared, [client])
        ready.engine.predict(shared, [client], ["validation"])
    except NotBatchable as error:
        return False, error.message
    return True, ""


def scalars_of(trials: Sequence[Trial]) -> tuple[str, ...]:
    """The hyper-parameters that may differ between trials that ride: those that are floats, of all of them."""
    settings = [trial.plan.algorithm.hyperparameters for trial in trials]
    return tuple(name for name in settings[0] if all(isinstance(each.get(name), float) for each in settings))


def _ready(task: Task, feed: Feed, trials: Sequence[Trial], how: Settings) -> _Ready:
    plan = trials[0].plan
    algorithms = [_algorithm(task, trial.plan) for trial in trials]
    if len(trials) == 1:
        return _Ready(algorithms[0], engine_of(how, algorithms[0], feed, plan, rounds=0), 1)
    settings = [trial.plan.algorithm.hyperparameters for trial in trials]
    scalars = {name: _fitted(task, [float(each[name]) for each in settings]) for name in scalars_of(trials)}
    family, said = _family(task, plan), plan.training
    work, adaptation = planned_work(plan)
    sweep = SweepEngine(
        family, algorithms, feed, work, adaptation=adaptation, weighting=said.weighting, most_weight=said.most_weight
    )
    return _Ready(riding(family, algorithms, scalars), sweep, len(trials))


def _fitted(task: Task, values: Sequence[float]) -> Tensor:
    """[K] in the dtype of the parameters; what is too large for it is the largest, and diverges all the same."""
    dtype = next(iter(task.parameters.values())).dtype
    most = torch.finfo(dtype).max
    return torch.tensor(values, dtype=torch.float64).clamp(-most, most).to(dtype)


def _algorithm(task: Task, plan: Plan) -> Algorithm:
    return guarded(build_algorithm(task, plan.algorithm, plan.contribution.dtype), plan)


def _family(task: Task, plan: Plan) -> Family:
    plain = family_of(task, plan.algorithm, plan.contribution.dtype)

    def build(scalars: Mapping[str, Tensor]) -> Algorithm:
        return guarded(plain(scalars), plan)

    return build


def _validated(ready: _Ready, server: Tree, prepared: Prepared, clients: Sequence[str], metric: str) -> list[Validated]:
    outputs = ready.engine.predict(ready.algorithm.broadcast(server), clients, ["validation"])
    lost = lost_of(server) if ready.trials > 1 else (False,)
    found = []
    for k in range(ready.trials):
        values, losses = [], []
        for client in clients:
            rows = prepared.rows[client]["validation"]
            mine = outputs[client]["validation"]
            scale = prepared.target_scale.get(client, (0.0, 1.0))[1]
            seen = measure(ready.algorithm.task, mine[:, k] if ready.trials > 1 else mine, prepared.y[rows], scale)
            values.append(seen.figures[metric])
            losses += [sum(seen.losses) / len(seen.losses)] if seen.losses else []
        known = [value for value in values if value == value]
        mean = sum(known) / len(known) if known else float("nan")
        loss = sum(losses) / len(losses) if losses else float("nan")
        if lost[k] or not abs(mean) < float("inf"):
            found.append(Validated(lost="It diverged." if lost[k] else "Its predictions are not finite."))
        else:
            found.append(Validated(metric=mean, loss=loss if abs(loss) < float("inf") else None))
    return found
