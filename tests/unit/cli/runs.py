"""The program as a user runs it, on tables of eighty rows."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import warm

PROGRAM = (sys.executable, "-m", "freehold.cli")
SHORT = ("--rounds", "2", "--seeds", "2", "--algorithms", "local,fedavg", "--jobs", "1")
COLUMNS = ("--client-column", "site", "--target", "y")


def freehold(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return warm.run(list(arguments), environment(), timeout_s=120)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "80"}


def table(path: Path, label: Callable[[float, float], object], *, bad: str | None = None) -> Path:
    """Two sites of forty rows; `bad` stands in one cell of column a."""
    rng = random.Random(0)
    lines = ["site,a,b,junk,y"]
    for site in ("north", "south"):
        for row in range(40):
            a, b = rng.gauss(0, 1), rng.gauss(0, 1)
            shown = bad if bad is not None and (site, row) == ("north", 2) else f"{a:.4f}"
            lines.append(f"{site},{shown},{b:.4f},{row},{label(a, b)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def words(a: float, b: float) -> str:
    return "ill" if a + b > 0 else "well"


def number(a: float, b: float) -> float:
    return 3 * a - b
