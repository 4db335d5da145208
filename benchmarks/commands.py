"""What a user waits for: wall time, CPU time and peak memory of whole commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "help": ["--help"],
    "algorithms": ["algorithms", "--json"],
    "demo": ["demo"],
}


def measure(arguments: list[str]) -> dict[str, float | int]:
    """One run of `freehold ARGUMENTS` in an empty folder: wall_s, cpu_s, peak_bytes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        child = subprocess.Popen(
            [str(Path(sys.executable).with_name("freehold")), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"freehold {' '.join(arguments)} exited with {child.returncode}")
    return {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def run() -> dict[str, dict[str, float | int]]:
    """The least of three runs of each command, the demo once: it takes long enough."""
    found = {}
    for name, arguments in COMMANDS.items():
        runs = [measure(arguments) for _ in range(1 if name == "demo" else 3)]
        found[name] = min(runs, key=lambda one: one["cpu_s"])
    return found
