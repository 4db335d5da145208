"""Up to 10,000 connected nodes on one coordinator process: memory of each connection, and the time of a round that wakes some.

`python -m benchmarks connections --nodes 10,100,1000,10000`
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.federation import ROOT, cpu_s, plugged, rss_kb

LOADERS = 2
"""Processes that play the nodes."""
SPARE_FILES = 512
"""Descriptors that a process needs beside its connections."""


class Loader:
    """One process that plays many nodes."""

    def __init__(self, first: int, count: int, state: Path, port: int, poll_s: float, datasets: Sequence[str]) -> None:
        arguments = [str(first), str(count), str(state), str(port), str(poll_s), ",".join(datasets)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid

    def heard(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"connections: a load process ended with {self._process.wait()}.")
        return dict(json.loads(line))

    def tell(self, word: str) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def report(self) -> dict[str, Any]:
        """Its counters."""
        self.tell("report")
        return self.heard()

    def end(self) -> None:
        """For good."""
        self._process.kill()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        self._process.wait()


def allow_files(count: int) -> None:
    """Let this process and those that it starts hold so many files open, or end with one clear line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, OSError):
        raise SystemExit(
            f"connections: {count} open files are needed and the system allows {hard}; "
            f"raise it (ulimit -Hn {count}) or give fewer --nodes."
        ) from None


def pause(seconds: float) -> None:
    """Leave the machine alone."""
    threading.Event().wait(seconds)


def total(loaders: Sequence[Loader]) -> dict[str, Any]:
    """The counters of all."""
    counted: Counter[str] = Counter()
    failures: list[str] = []
    for loader in loaders:
        found = loader.report()
        failures += found.pop("failures")
        found.pop("event")
        counted.update(found)
    return {**counted, "failures": failures}


def until(loaders: Sequence[Loader], wanted: int, limit_s: float = 600.0) -> dict[str, Any]:
    """The counters once that many connections wait for an answer."""
    deadline = time.monotonic() + limit_s
    while True:
        found = total(loaders)
        if found["open"] >= wanted:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"connections: {found['open']} of {wanted} nodes are connected after {limit_s:.0f} s: {found}")
        pause(0.2)


def measure(
    nodes: int, *, awake: int | None = None, rounds: int = 5, poll_s: float = 25.0, bulk: int | None = None, settle_s: float = 8.0
) -> dict[str, object]:
    """One coordinator with `nodes` connected nodes: 1 MB to and from `bulk` of them, then `rounds` that wake `awake` of them.

    None: a hundredth and a tenth, at least 10. After each of the two studies, every node must have answered. `settle_s`: how long
    memory is left alone before it is read; the coordinator hands free memory back some seconds after a round.
    """
    from tests.federation import harness
    from tests.federation.harness import Federation

    harness.PATIENCE_S = 900.0

    awake = min(nodes, max(10, nodes // 10)) if awake is None else awake
    bulk = min(nodes, max(10, nodes // 100)) if bulk is None else bulk
    allow_files(nodes + SPARE_FILES)
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as name, plugged(Path(name)), ExitStack() as stack:
        federation = Federation(Path(name), [], fork=None)
        federation.start_coordinator()
        stack.callback(federation.stop)
        pid = federation.coordinator.popen.pid
        loaders = []
        for i in range(min(LOADERS, nodes)):
            first, beyond = (nodes * i // LOADERS, nodes * (i + 1) // LOADERS) if nodes >= LOADERS else (i, i + 1)
            state = federation.folder / "coordinator"
            loaders.append(Loader(first, beyond - first, state, federation.port, poll_s, ["bench-10kb", "bench-1mb"]))
            stack.callback(loaders[-1].end)
        for loader in loaders:
            loader.heard()
        before_kb, before_cpu, began = rss_kb(pid), cpu_s(pid), time.monotonic()
        for loader in loaders:
            loader.tell("connect")
        until(loaders, nodes)
        joined_s, joined_cpu = time.monotonic() - began, cpu_s(pid) - before_cpu
        idle_cpu, began = cpu_s(pid), time.monotonic()
        pause(settle_s)
        idle_kb, idle_share = rss_kb(pid), (cpu_s(pid) - idle_cpu) / (time.monotonic() - began)
        heavy = study(federation, loaders, "bench-1mb", nodes=nodes, cohort=bulk, rounds=1)
        pause(settle_s)
        bulk_kb = rss_kb(pid)
        woken = study(federation, loaders, "bench-10kb", nodes=nodes, cohort=awake, rounds=rounds)
        pause(settle_s)
        after_kb = rss_kb(pid)
        last = until(loaders, nodes)
        return {
            "nodes": nodes,
            "cohort": awake,
            "poll_s": poll_s,
            "connect_s": round(joined_s, 2),
            "connect_cpu_ms_each": round(1000 * joined_cpu / nodes, 2),
            "idle_kb_each": round((idle_kb - before_kb) / nodes, 1),
            "idle_cpu_share": round(idle_share, 4),
            "after_bulk_kb_each": round((bulk_kb - before_kb) / nodes, 1),
            "after_all_answered_kb_each": round((after_kb - before_kb) / nodes, 1),
            "coordinator_mb": round(after_kb / 1024, 1),
            "coordinator_peak_mb": round(rss_kb(pid, "VmHWM") / 1024, 1),
            "round": woken,
            "bulk": heavy,
            "connections_broken": last.get("broken", 0),
            "failures": last["failures"],
        }


def study(federation: Any, loaders: Sequence[Loader], task: str, *, nodes: int, cohort: int, rounds: int) -> dict[str, object]:
    """One study to its end, at which every node must have answered; how long its rounds took, opened to closed."""
    from freehold.plan import AlgorithmRef, Plan, RoundPolicy, TaskRef, Training
    from tests.federation.harness import with_spec

    plan = with_spec(
        Plan(
            name=task,
            task=TaskRef(name=task),
            algorithm=AlgorithmRef(name="trivial"),
            training=Training(rounds=rounds, batch_size=16, steps=1),
            round=RoundPolicy(least_nodes=nodes, cohort=cohort),
        )
    )
    pid, began = federation.coordinator.popen.pid, time.monotonic()
    before = cpu_s(pid)
    digest = federation.run(plan)
    federation.coordinator.wait_for("round.closed", round=rounds - 1)
    trained = cpu_s(pid) - before
    closed = time.monotonic()
    federation.coordinator.wait_for("study.finished", study=digest)
    results = federation.admin.get(f"/v1/studies/{digest}", type(federation).results)
    answered = len(next(iter(results.measures.values())))
    heard = [len(r.heard) for r in results.rounds if r.round < rounds]
    if answered != nodes or heard != [cohort] * rounds:
        raise SystemExit(f"connections: of {cohort} in a round, {heard} were heard; of {nodes}, {answered} answered at the end.")
    seconds = [r.seconds for r in sorted(results.rounds, key=lambda r: r.round) if r.round < rounds]
    return {
        "task": task,
        "cohort": cohort,
        "rounds": rounds,
        "first_s": round(seconds[0], 3),
        "median_s": round(statistics.median(seconds[1:] or seconds), 3),
        "least_s": round(min(seconds), 3),
        "coordinator_cpu_s_each": round(trained / rounds, 3),
        "train_s": round(closed - began, 2),
        "all_measured_s": round(time.monotonic() - closed, 2),
        "answered_at_the_end": answered,
    }


def run(nodes: Sequence[int] = (10, 100, 1000, 10_000), **settings: Any) -> dict[str, object]:
    """`measure` at each number of nodes."""
    return {"points": [measure(n, **settings) for n in nodes]}


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Round time and memory against nodes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    nodes = [p["nodes"] for p in points]
    left.loglog(nodes, [p["round"]["median_s"] for p in points], "o-", label="round, a tenth of the nodes")
    left.loglog(nodes, [p["round"]["coordinator_cpu_s_each"] for p in points], "s--", label="coordinator CPU, a round")
    left.set(xlabel="connected nodes", ylabel="seconds", title="10 kB from each node of the cohort")
    right.semilogx(nodes, [p["coordinator_mb"] for p in points], "o-", label="coordinator, MB in all")
    right.semilogx(nodes, [p["idle_kb_each"] for p in points], "s--", label="kB for each idle connection")
    right.set(xlabel="connected nodes", ylabel="memory", title="resident memory", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
