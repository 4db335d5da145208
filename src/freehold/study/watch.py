"""Progress of a study that was started from Python: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from freehold.events import Event, Listener, silent


def watch(stream: TextIO | None = None) -> Listener:
    """A listener that keeps one line up to date on standard error, if that is a terminal, and removes it at the end."""
    stream = stream or sys.stderr
    if stream is None or not stream.isatty():
        return silent

    def listen(event: Event) -> None:
        if event.name == "study.planned":
            stream.write(f"\r\x1b[Ktraining: 0 of {event.fields['cells']}, each one algorithm with one seed")
        elif event.name == "cell.closed":
            done, cells = event.fields["done"], event.fields["cells"]
            shown = "" if done == cells else f"training: {done} of {cells}"
            stream.write(f"\r\x1b[K{shown}")
        else:
            return
        stream.flush()

    return listen
