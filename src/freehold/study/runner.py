"""Runs the cells of a study, here or in several processes, and stops between two rounds when it is told to."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import torch

from freehold.data import Prepared
from freehold.engines import Processes
from freehold.errors import Diverged, SimulationError, UsageError
from freehold.events import Event, silent
from freehold.study.cell import Cell, CellResult, Crew, Interrupted, run_cell
from freehold.study.checkpoint import Checkpoint, damaged
from freehold.study.models import place_of
from freehold.study.search import search_cell
from freehold.study.settings import Settings
from freehold.study.source import Source
from freehold.tasks import TaskDefinition


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all cells of a study have in common."""

    definition: TaskDefinition
    source: Source
    newcomers: tuple[str, ...]
    settings: Settings
    checkpoint: Checkpoint | None
    required: frozenset[str] = frozenset()
    """Rows without which the study says nothing."""


class Ran(NamedTuple):
    """What came of the cells."""

    results: dict[str, CellResult]
    """By the cell's label."""
    diverged: dict[str, Diverged]
    """Label -> why there is no result; the other seeds of such a row may be missing too."""


def run_cells(cells: Sequence[Cell], job: Job) -> Ran:
    """Run the cells; the results of finished ones come from the checkpoint.

    Raises Interrupted after SIGINT or SIGTERM, all states being saved; after a second one at once, with what was saved before.
    Raises Diverged where a row of `job.required` does.
    """
    ran = Ran({}, {})
    tell = job.settings.listener
    if job.checkpoint and job.settings.resume:
        for cell in cells:
            found = job.checkpoint.load_done(cell.label)
            if found is not None:
                _refuse_without_models(cell, job.settings.models)
                ran.results[cell.label] = _converted(found, job.checkpoint)
    left = [cell for cell in cells if cell.label not in ran.results]
    jobs = min(job.settings.jobs, len(left))
    with _crew(job.settings) as crew, _stoppable() as stop:
        tell(Event("study.planned", {"cells": len(cells), "done": len(ran.results)}))
        try:
            for cell, result in _here(left, job, stop, crew) if crew or jobs <= 1 else _in_processes(left, job, jobs, stop):
                _note(cell, result, ran, job)
                done = {"done": len(ran.results) + len(ran.diverged), "cells": len(cells)}
                told: dict[str, str | int | float] = {"row": cell.trial.name, "seed": cell.seed, **done}
                if isinstance(result, Diverged):
                    tell(Event("cell.diverged", told))
                else:
                    tell(Event("cell.closed", {**told, "seconds": result.seconds}))
        except KeyboardInterrupt as asked:
            raise asked if isinstance(asked, Interrupted) else _interrupted(job) from None
    return ran


def _refuse_without_models(cell: Cell, models: Path | None) -> None:
    """A finished cell has no models any more: they were written when it finished, or never."""
    if models and not place_of(models, cell.trial.name, cell.seed).is_dir():
        raise UsageError(
            f"{cell.trial.name} with seed {cell.seed} had finished before, without its models in {models}.",
            hint="Give --models as in the interrupted run, or leave out --resume to start anew.",
        )


def _note(cell: Cell, result: CellResult | Diverged, ran: Ran, job: Job) -> None:
    if isinstance(result, Diverged):
        ran.diverged[cell.label] = result
        return
    ran.results[cell.label] = result
    for index, mean in result.curve:
        fields: dict[str, str | int | float] = {"row": cell.trial.name, "seed": cell.seed, "round": index}
        job.settings.listener(Event("round.evaluated", {**fields, job.definition.metric: mean}))


def _interrupted(job: Job) -> Interrupted:
    return Interrupted(str(job.checkpoint.folder) if job.checkpoint and job.checkpoint.exists() else None)


def _converted(found: dict[str, Any], checkpoint: Checkpoint) -> CellResult:
    try:
        return msgspec.convert(found, CellResult)
    except msgspec.ValidationError:
        raise damaged(checkpoint.folder) from None


def _here(
    cells: Sequence[Cell], job: Job, stop: threading.Event, crew: Crew | None
) -> Iterator[tuple[Cell, CellResult | Diverged]]:
    ready = _Ready(job, crew)
    lost: dict[int, Diverged] = {}
    for cell in cells:
        if cell.index in lost:  # the row is lost already
            yield cell, lost[cell.index]
            continue
        job.settings.listener(Event("cell.started", {"row": cell.trial.name, "seed": cell.seed}))

        def closed(done: int, cell: Cell = cell) -> None:
            rounds = cell.trial.plan.training.rounds
            told: dict[str, str | int] = {"row": cell.trial.name, "seed": cell.seed, "round": done, "rounds": rounds}
            job.settings.listener(Event("round.closed", dict(told)))

        result = _attempt(cell, job, partial(ready.run, cell, stop.is_set, closed))
        if isinstance(result, Diverged):
            lost[cell.index] = result
        yield cell, result


def _attempt(cell: Cell, job: Job, run: Callable[[], CellResult]) -> CellResult | Diverged:
    try:
        return run()
    except Diverged as error:
        if cell.trial.name in job.required:
            raise
        return error


def _in_processes(
    cells: Sequence[Cell], job: Job, jobs: int, stop: threading.Event
) -> Iterator[tuple[Cell, CellResult | Diverged]]:
    context = multiprocessing.get_context("spawn")  # torch and polars have threads, which do not survive a fork
    halt, begun = context.Event(), context.Event()
    quiet = replace(job, settings=replace(job.settings, jobs=1, listener=silent))  # a listener may not travel
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(quiet, halt, begun))
    others = multiprocessing.active_children()
    with _without_interrupts():
        futures: dict[Future[CellResult], Cell] = {pool.submit(_work, cell): cell for cell in cells}
    workers = [child for child in multiprocessing.active_children() if child not in others]

    def kill() -> None:
        for worker in workers:
            worker.kill()

    def pass_on() -> None:
        stop.wait()
        halt.set()
        if not begun.is_set():  # they are still importing: nothing is lost, and nobody waits for it
            kill()

    watch = threading.Thread(target=pass_on, daemon=True)
    watch.start()
    try:
        for future in as_completed(futures):
            cell = futures[future]
            yield cell, _attempt(cell, job, future.result)
    except BrokenProcessPool:
        if stop.is_set():
            raise _interrupted(job) from None
        raise SimulationError(
            "A worker process died; most often there was not enough memory.", hint="Run with fewer --jobs, and --resume."
        ) from None
    except KeyboardInterrupt as asked:
        if not isinstance(asked, Interrupted):  # asked twice
            kill()
        raise
    finally:
        asked_to_stop = stop.is_set()
        halt.set()  # whatever ended the loop: no cell goes on
        try:
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            kill()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            begun.set()  # the watcher may go, and has nobody to kill
            stop.set()
            watch.join()
            if not asked_to_stop:
                stop.clear()


@contextmanager
def _crew(settings: Settings) -> Iterator[Crew | None]:
    """The workers that share each cell's clients, where they are asked for; they start with the first cell."""
    crew: Crew | None = None
    if settings.engine == "ray":
        from freehold.engines.ray import RayCluster

        crew = RayCluster(settings.address, settings.processes)
    elif (settings.processes or 1) > 1:
        crew = Processes(settings.processes or 1)
    try:
        yield crew
    finally:
        if crew is not None:
            crew.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started in here never see a Ctrl-C, not even while they import: the parent alone decides, and says
    so by an event. One that comes meanwhile is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event once, and interrupt at once the second time; only the main thread gets signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ready:
    """Runs cells, and keeps the tensors of the last seed: the cells of a seed come one after the other."""

    def __init__(self, job: Job, crew: Crew | None = None) -> None:
        self.job, self.crew = job, crew
        self.kept: tuple[tuple[int, bool], Prepared] | None = None

    def run(self, cell: Cell, stop: Callable[[], bool], closed: Callable[[int], None]) -> CellResult:
        job, key = self.job, (cell.seed, cell.trial.pooled)
        if self.kept is None or self.kept[0] != key:
            self.kept = key, job.source.prepared(*key)
        run = search_cell if cell.searched else partial(run_cell, crew=self.crew, models=job.settings.models)
        return run(
            cell,
            job.definition,
            self.kept[1],
            settings=job.settings,
            newcomers=job.newcomers,
            checkpoint=job.checkpoint,
            stop=stop,
            closed=closed,
        )


_worker: tuple[_Ready, Any, Any] | None = None


def _start(job: Job, halt: Any, begun: Any) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _Ready(job), halt, begun


def _work(cell: Cell) -> CellResult:
    if _worker is None:
        raise Interrupted
    ready, halt, begun = _worker
    begun.set()
    if halt.is_set():
        raise _interrupted(ready.job)
    return ready.run(cell, halt.is_set, lambda done: None)
