"""What a jail costs: time added to the start of a process, and to training. Pairs of inside and outside, one after the other."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from freehold.sandbox.jail import ENVIRON, jailed
from freehold.sandbox.selftest import assess, require

STARTS, TRAININGS = 31, 11
MODULE = "benchmarks.trained"


def _started_s(process: subprocess.Popen[bytes], began: float) -> float:
    if process.wait() != 0:
        raise SystemExit("a process of the benchmark failed")
    return time.perf_counter() - began


def run() -> dict[str, Any]:
    """Medians: start_ms outside and inside and added_ms of the pairs; training_s and slower_percent of the pairs."""
    began = time.perf_counter()
    found = assess("benchmark")
    selftest_s = time.perf_counter() - began
    root = str(Path(__file__).parents[1])
    jail = replace(require(found).jail(), code=[*require(found).jail().code, root])
    environ = {
        **ENVIRON,
        "HOME": os.environ.get("HOME", "/"),
        "TMPDIR": "/tmp",
        "PYTHONPATH": os.pathsep.join([root, *sys.path[1:]]),
    }

    def outside(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env=environ, cwd=root, pass_fds=[int(a) for a in arguments]
        )

    starts = []
    for _ in range(STARTS):
        began = time.perf_counter()
        plain = _started_s(outside("freehold.sandbox"), began)
        began = time.perf_counter()
        starts.append((plain, _started_s(jailed("freehold.sandbox", [], jail), began)))

    def inside(module: str, fd: str) -> subprocess.Popen[bytes]:
        return jailed(module, [int(fd)], jail)

    trainings = []
    for index in range(TRAININGS):  # each one is first in half of the pairs
        order = (outside, inside) if index % 2 else (inside, outside)
        taken = {start: _trained_s(start) for start in order}
        trainings.append((taken[outside], taken[inside]))
    return {
        "level": found.offer.level,
        "attempts": len(found.outcomes),
        "selftest_s": round(selftest_s, 2),
        "outside_ms": round(1e3 * statistics.median(plain for plain, _ in starts), 1),
        "inside_ms": round(1e3 * statistics.median(inside for _, inside in starts), 1),
        "added_ms": round(1e3 * statistics.median(inside - plain for plain, inside in starts), 1),
        "training_s": round(statistics.median(plain for plain, _ in trainings), 3),
        "slower_percent": round(100 * statistics.median(inside / plain - 1 for plain, inside in trainings), 2),
    }


def _trained_s(start: Any) -> float:
    """Seconds of the training alone, as the process itself measured them: importing PyTorch is not the jail's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(MODULE, str(theirs.fileno()))
        theirs.close()
        told = ours.recv(64)
        process.wait()
    return float(told)
