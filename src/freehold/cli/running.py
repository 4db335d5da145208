"""A study from the command line: settings from the environment, progress, trackers, and results at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.cli.options import DeviceName, EngineName, ExecutorName, ResultOptions, RunOptions
from freehold.cli.output import STDOUT, check_empty, check_writable, write
from freehold.cli.progress import progress
from freehold.errors import UsageError
from freehold.events import Event, Listener
from freehold.settings import state_home

if TYPE_CHECKING:
    from freehold.report import Comparison
    from freehold.study import Settings


def run(
    study: Callable[[Settings], Comparison],
    options: RunOptions,
    results: ResultOptions,
    *,
    newcomers: int = 0,
    also: Path | None = None,
) -> None:
    """Run `study` and tell what it found: files first, each written whole, then tables on the terminal.

    `also` is one more file that the caller will write. Destinations that cannot be written are refused before the work.
    """
    check_writable(results.json, results.report, also)
    check_empty(options.models, started=options.resume)
    with settings_of(options, newcomers) as settings:
        comparison = study(settings)
    tell(comparison, results, explain=options.explain)


def _check(options: RunOptions) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.address is not None and options.engine is not EngineName.ray:
        raise UsageError("--address is that of a Ray cluster.", hint="Add --engine ray, or leave it out.")
    if options.engine is EngineName.ray and options.address is None:
        raise UsageError(
            "--engine ray needs a cluster, and starts none.",
            hint="Name one that is there: --address HOST:6379, or auto on one of its nodes. `ray start --head` makes one.",
        )
    if options.executor is not ExecutorName.auto and options.engine is EngineName.loop:
        raise UsageError(
            "--executor is for the vector engine; --engine loop runs one client at a time.",
            hint="Leave out one of them; --executor loop is the vector engine's fast way to do the same.",
        )
    if options.device is not DeviceName.cpu and (options.engine is EngineName.ray or (options.processes or 1) > 1):
        raise UsageError(
            "--processes and Ray divide clients over processors, and know no other device.",
            hint="Leave out --device, or run in one process.",
        )
    if (options.jobs or 1) > 1 and (options.engine is EngineName.ray or (options.processes or 1) > 1):
        raise UsageError(
            "--jobs runs whole rows side by side, --processes and Ray divide one row's clients; not both at once.",
            hint="With many rows and seeds take --jobs, with few large ones --processes.",
        )


@contextmanager
def settings_of(options: RunOptions, newcomers: int) -> Iterator[Settings]:
    """The settings, with everybody who listens; trackers are closed at the end."""
    _check(options)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded: many small models, one per process
    from freehold.study import Settings

    with ExitStack() as stack:
        listeners = [*_trackers(options, stack), stack.enter_context(progress())]
        yield Settings(
            engine=options.engine.value,
            executor=options.executor.value,
            device=options.device.value,
            explain=options.explain,
            jobs=options.jobs or len(os.sched_getaffinity(0)),
            processes=options.processes,
            address=options.address,
            checkpoint=_checkpoint(options.checkpoint),
            resume=options.resume,
            newcomers=newcomers,
            models=options.models,
            listener=_all(listeners),
        )


def _trackers(options: RunOptions, stack: ExitStack) -> list[Listener]:
    if not options.log:
        return []
    from freehold import tracking

    return [stack.enter_context(tracking.listener(where)) for where in options.log]


def _all(listeners: list[Listener]) -> Listener:
    def listen(event: Event) -> None:
        for each in listeners:
            each(event)

    return listen


def _checkpoint(folder: Path | None) -> Path | None:
    """The folder of checkpoints; None where there is no place for them and none was asked for."""
    chosen = folder or state_home(os.environ) / "checkpoints"
    there = next(path for path in (chosen.absolute(), *chosen.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return chosen
    if folder is None:
        return None
    raise UsageError(f"No checkpoint can be written to {folder}.", hint="Give --checkpoint a folder of yours.")


def tell(comparison: Comparison, results: ResultOptions, *, explain: bool = False) -> None:
    """Files first, each written whole, then tables on the terminal."""
    from freehold.report import dumps

    if results.report is not None:
        from freehold.report.page import page

        write(results.report, page(comparison))
    if results.json is not None:
        write(results.json, dumps(comparison))
    if STDOUT in (results.json, results.report):
        return
    from freehold.cli.show import show

    show(comparison)
    if explain:
        from freehold.cli.explained import explained

        explained(comparison)
    for path in (results.json, results.report):
        if path is not None:
            sys.stdout.write(f"Written: {path}\n")
