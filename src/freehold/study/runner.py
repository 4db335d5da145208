"""Runs the cells of a study, here or in several processes, and stops between two rounds when it is told to."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
import torch

from freehold.data import Prepared
from freehold.errors import SimulationError
from freehold.events import Event
from freehold.study.cell import Cell, CellResult, Interrupted, run_cell
from freehold.study.checkpoint import Checkpoint, damaged
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


def run_cells(cells: Sequence[Cell], job: Job) -> dict[str, CellResult]:
    """The result of each cell, by its label; finished ones come from the checkpoint.

    Raises Interrupted after SIGINT or SIGTERM, all states being saved.
    """
    results: dict[str, CellResult] = {}
    tell = job.settings.listener
    if job.checkpoint and job.settings.resume:
        for cell in cells:
            found = job.checkpoint.load_done(cell.label)
            if found is not None:
                results[cell.label] = _converted(found, job.checkpoint)
    left = [cell for cell in cells if cell.label not in results]
    jobs = min(job.settings.jobs, len(left))
    with _stoppable() as stop:
        tell(Event("study.planned", {"cells": len(cells), "done": len(results)}))
        for cell, result in _here(left, job, stop) if jobs <= 1 else _in_processes(left, job, jobs, stop):
            results[cell.label] = result
            for index, mean in result.curve:
                fields: dict[str, str | int | float] = {"row": cell.trial.name, "seed": cell.seed, "round": index}
                tell(Event("round.evaluated", {**fields, job.definition.metric: mean}))
            done = {"done": len(results), "cells": len(cells), "seconds": result.seconds}
            tell(Event("cell.closed", {"row": cell.trial.name, "seed": cell.seed, **done}))
    return results


def _converted(found: dict[str, Any], checkpoint: Checkpoint) -> CellResult:
    try:
        return msgspec.convert(found, CellResult)
    except msgspec.ValidationError:
        raise damaged(checkpoint.folder) from None


def _here(cells: Sequence[Cell], job: Job, stop: threading.Event) -> Iterator[tuple[Cell, CellResult]]:
    ready = _Ready(job)
    for cell in cells:
        job.settings.listener(Event("cell.started", {"row": cell.trial.name, "seed": cell.seed}))

        def closed(done: int, cell: Cell = cell) -> None:
            rounds = cell.trial.plan.training.rounds
            told: dict[str, str | int] = {"row": cell.trial.name, "seed": cell.seed, "round": done, "rounds": rounds}
            job.settings.listener(Event("round.closed", dict(told)))

        yield cell, ready.run(cell, stop.is_set, closed)


def _in_processes(cells: Sequence[Cell], job: Job, jobs: int, stop: threading.Event) -> Iterator[tuple[Cell, CellResult]]:
    context = multiprocessing.get_context("spawn")  # torch and polars have threads, which do not survive a fork
    halt = context.Event()
    quiet = Job(
        definition=job.definition,
        source=job.source,
        newcomers=job.newcomers,
        settings=Settings(engine=job.settings.engine, resume=job.settings.resume),  # a listener may not travel
        checkpoint=job.checkpoint,
    )
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(quiet, halt)) as pool:
        futures: dict[Future[CellResult], Cell] = {pool.submit(_work, cell): cell for cell in cells}

        def pass_on() -> None:
            stop.wait()
            halt.set()

        watch = threading.Thread(target=pass_on, daemon=True)
        watch.start()
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise SimulationError(
                "A worker process died; most often there was not enough memory.", hint="Run with fewer --jobs, and --resume."
            ) from None
        finally:
            asked = stop.is_set()
            halt.set()  # whatever ended the loop: no cell goes on
            pool.shutdown(cancel_futures=True)
            stop.set()  # the watcher may go
            watch.join()
            if not asked:
                stop.clear()


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

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kept: tuple[tuple[int, bool], Prepared] | None = None

    def run(self, cell: Cell, stop: Callable[[], bool], closed: Callable[[int], None]) -> CellResult:
        job, key = self.job, (cell.seed, cell.trial.pooled)
        if self.kept is None or self.kept[0] != key:
            self.kept = key, job.source.prepared(*key)
        return run_cell(
            cell,
            job.definition,
            self.kept[1],
            engine=job.settings.engine,
            newcomers=job.newcomers,
            checkpoint=job.checkpoint,
            resume=job.settings.resume,
            stop=stop,
            closed=closed,
        )


_worker: tuple[_Ready, Any] | None = None


def _start(job: Job, halt: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and says so by `halt`
    torch.set_num_threads(1)
    _worker = _Ready(job), halt


def _work(cell: Cell) -> CellResult:
    if _worker is None:
        raise Interrupted
    ready, halt = _worker
    if halt.is_set():
        raise Interrupted(str(ready.job.checkpoint.folder) if ready.job.checkpoint else None)
    return ready.run(cell, halt.is_set, lambda done: None)
