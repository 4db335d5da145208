"""The agent's process stays small: what it loads is the standard library, msgspec and Freehold's own."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "polars", "typer", "rich", "cryptography", "aiohttp", "sqlalchemy", "ctypes", "asyncio")


def test_the_agent_loads_nothing_heavy() -> None:
    code = f"import sys, freehold.node.__main__, freehold.node.page; print(*({HEAVY!r} & sys.modules.keys()))"
    code = code.replace(repr(HEAVY), repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
