"""A virtual environment for one peer, made once under a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Missing(Exception):
    """A peer cannot be installed or does not run here; why, in a line."""


def cache() -> Path:
    """Where the environments are: FREEHOLD_BENCH_CACHE, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freehold-benchmarks"
    return Path(os.environ.get("FREEHOLD_BENCH_CACHE") or default)


def environment(name: str, *packages: str) -> Path:
    """The bin folder of an environment with these packages, from the index that pip is set up for; raises Missing."""
    folder = cache() / name
    done = folder / "installed"
    if done.exists() and done.read_text(encoding="utf-8") == "\n".join(packages):
        return folder / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-input", *packages],
    ):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            lines = [line for line in made.stderr.splitlines() if line.strip()]
            raise Missing(f"{name} cannot be installed: {lines[-1] if lines else made.returncode}")
    done.write_text("\n".join(packages), encoding="utf-8")
    return folder / "bin"
