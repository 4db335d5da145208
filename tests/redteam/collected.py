"""All tests of this folder, imported, so that the table knows them."""

from __future__ import annotations

import importlib
from pathlib import Path


def collect() -> None:
    """Import each of them once."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.redteam.{path.stem}")
