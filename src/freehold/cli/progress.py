"""Progress of a study, from its events: a bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from freehold.cli.console import errors, visible
from freehold.events import Event, Listener

EVERY_S = 5.0  # between two plain lines


@contextmanager
def progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Listener]:
    """A listener that shows how far the study is."""
    console = errors()
    if not console.is_terminal:
        yield plain(lambda line: console.print(line), clock)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("preparing", total=None)

        def listen(event: Event) -> None:
            if event.name == "study.planned":
                bar.update(
                    shown, total=float(event.fields["cells"]), completed=float(event.fields["done"]), description="training"
                )
            elif event.name == "round.closed":
                bar.update(
                    shown, description=f"{_cell(event)}, round {int(event.fields['round']) + 1} of {event.fields['rounds']}"
                )
            elif event.name == "checkpoint.set_aside":
                bar.console.print(_set_aside(event))
            elif event.name in ("cell.closed", "cell.diverged"):
                bar.update(shown, completed=float(event.fields["done"]), description=_cell(event))

        yield listen


def plain(write: Callable[[str], None], clock: Callable[[], float]) -> Listener:
    """A listener that writes a line at the start, at the end and every few seconds."""
    last = clock()

    def listen(event: Event) -> None:
        nonlocal last
        if event.name == "study.planned":
            write(f"training: {event.fields['cells']} cells, each one algorithm with one seed")
        elif event.name == "checkpoint.set_aside":
            write(_set_aside(event))
        elif event.name in ("cell.closed", "cell.diverged"):
            done, cells = int(event.fields["done"]), int(event.fields["cells"])
            if done == cells or clock() - last >= EVERY_S:
                last = clock()
                write(f"{done} of {cells}: {_cell(event)}")

    return listen


def _set_aside(event: Event) -> str:
    return (
        "An interrupted run of this very command was found; this one starts anew. To go on with that one, stop and add --resume. "
        f"Until this run is done, it is kept in {visible(str(event.fields['folder']))}"
    )


def _cell(event: Event) -> str:
    return visible(f"{event.fields['row']}, seed {event.fields['seed']}")
