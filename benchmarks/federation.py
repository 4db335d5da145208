"""A real federation on loopback: time of a round, memory and CPU of each process. Everything durable.

`python -m benchmarks.federation [10kb|1mb|50mb|1gb] [NODES] [ROUNDS]`
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import trivial

ROOT = Path(__file__).resolve().parents[1]


def rss_kb(pid: int, field: str = "VmRSS") -> int:
    """Resident memory, or its peak (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextmanager
def plugged(folder: Path) -> Iterator[None]:
    """The benchmark's task and algorithm installed, for this process and those that it starts."""
    path = trivial.install(folder / "plugin")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [str(path), str(ROOT)]
    yield


def measure(size: str = "10kb", nodes: int = 4, rounds: int = 60, *, watch: bool = False) -> dict[str, object]:
    """One study; figures of its rounds and processes. With `watch`, also what each side takes with all its processes."""
    from benchmarks.peers.watch import Watch
    from freehold.plan import AlgorithmRef, Plan, RoundPolicy, TaskRef, Training
    from tests.federation import harness
    from tests.federation.harness import HOSPITALS, Federation, with_spec

    harness.PATIENCE_S = 900.0  # of the largest model, rounds take a while
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as name, plugged(Path(name)):
        folder = Path(name)
        names = list(HOSPITALS)[:nodes]
        federation = Federation(folder, names, fork=None, dataset=f"bench-{size}")
        plan = with_spec(
            Plan(
                name=f"bench-{size}",
                task=TaskRef(name=f"bench-{size}"),
                algorithm=AlgorithmRef(name="trivial"),
                training=Training(rounds=rounds, batch_size=16, steps=1),
                round=RoundPolicy(least_nodes=nodes),
            )
        )
        federation.start()
        trees: dict[str, int] = {}
        watched = Watch(lambda: trees)
        try:
            coordinator = federation.coordinator.popen.pid
            agents = [process.popen.pid for process in federation.nodes.values()]
            idle = {"coordinator_mb": rss_kb(coordinator) / 1024, "agent_mb": max(map(rss_kb, agents)) / 1024}
            if watch:
                trees = {"server": coordinator, **{f"node-{i}": agent for i, agent in enumerate(agents)}}
                watched.__enter__()
            digest = federation.run(plan)
            at = min(2, rounds - 1)
            federation.coordinator.wait_for("round.closed", round=at)
            before = cpu_s(coordinator)
            loaded_kb = rss_kb(coordinator)
            if at < rounds - 1:
                federation.coordinator.wait_for("contribution.received", round=at + 1)
                loaded_kb = rss_kb(coordinator)  # one contribution, and the round's sum is all there
                federation.coordinator.wait_for("round.closed", round=rounds - 1)
            used = cpu_s(coordinator) - before
            peak_kb, agent_peak_kb = rss_kb(coordinator, "VmHWM"), max(rss_kb(a, "VmHWM") for a in agents)
            others = {rss_kb(pid, "VmHWM") / 1024 for agent in agents for pid in children(agent)}
            results = federation.admin.get(f"/v1/studies/{digest}", type(federation).results)
        finally:
            if watch:
                watched.__exit__(None, None, None)
            federation.stop()
        seconds = [r.seconds for r in results.rounds if r.heard and r.round >= 2]
        return {
            "size": size,
            "nodes": nodes,
            "rounds": len(seconds),
            "round_ms_median": round(1000 * statistics.median(seconds), 2),
            "round_ms_p90": round(1000 * statistics.quantiles(seconds, n=10)[-1], 2) if len(seconds) > 1 else None,
            "coordinator_cpu_ms_per_round": round(1000 * used / max(rounds - 1 - at, 1), 2),
            "idle": idle,
            "coordinator_loaded_mb": loaded_kb / 1024,
            "coordinator_peak_over_loaded_mb": (peak_kb - loaded_kb) / 1024,
            "agent_peak_mb": agent_peak_kb / 1024,
            "guard_peak_mb": sorted(others)[-1] if others else None,
            **({"server_tree_peak_mb": watched.most("server"), "node_tree_peak_mb": watched.most("node")} if watch else {}),
        }


def run(sizes: Mapping[str, tuple[int, int]] | None = None) -> dict[str, object]:
    """Size -> figures, with (nodes, rounds) for each; 10 kB and 50 MB with four nodes, 1 GB with one."""
    chosen = sizes or {"10kb": (4, 60), "50mb": (4, 6), "1gb": (1, 5)}
    return {size: measure(size, nodes, rounds) for size, (nodes, rounds) in chosen.items()}


if __name__ == "__main__":
    size, nodes, rounds = (*sys.argv[1:], *("10kb", "4", "60")[len(sys.argv) - 1 :])
    print(json.dumps(measure(size, int(nodes), int(rounds)), indent=2))
