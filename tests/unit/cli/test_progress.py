"""The lines of progress where there is no terminal."""

from __future__ import annotations

from freehold.cli.progress import plain
from freehold.events import Event


def test_an_interrupted_run_that_is_set_aside_and_a_row_that_diverged_are_part_of_the_story() -> None:
    lines: list[str] = []
    hear = plain(lines.append, lambda: 0.0)
    hear(Event("checkpoint.set_aside", {"folder": "/kept/abc-aside.1"}))
    hear(Event("study.planned", {"cells": 1, "done": 0}))
    hear(Event("cell.diverged", {"row": "pfedme", "seed": 0, "done": 1, "cells": 1}))
    assert "--resume" in lines[0] and "/kept/abc-aside.1" in lines[0]
    assert lines[-1] == "1 of 1: pfedme, seed 0"
