"""Peers as contenders: each in its own environment and process, told what to do by lines on a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.federation import ROOT, cpu_s, rss_kb
from benchmarks.peers.environment import Missing, environment
from benchmarks.peers.watch import tree
from benchmarks.simulation.works import MAX_NORM, Ready

ROUNDS_GIVEN = 8
"""Rounds whose batches a peer is given; it has no part in drawing them, which is not in its time."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A framework that can do some of the work."""

    name: str
    worker: str
    """Module below `benchmarks.simulation.workers`."""
    packages: Sequence[str]
    arguments: Sequence[str] = ()
    private: bool = False
    """Whether it does DP-SGD, and nothing else."""
    processes: bool = False
    """Whether it works in several processes, whose time is added up by whoever looks on."""

    def does(self, made: Ready) -> bool:
        """Whether this work is one of its."""
        work = made.workload
        return made.device.type == "cpu" and work.algorithm == "fedavg" and self.private == (work.noise is not None)

    @property
    def environment(self) -> str:
        """The name of its environment."""
        return f"simulation-{self.name.partition(' ')[0]}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(name="flwr", worker="flower", packages=("flwr[simulation]==1.42.*",), processes=True),
        Peer(name="pfl", worker="pfl_research", packages=("pfl==0.6.*",)),
        Peer(name="opacus", worker="dp_opacus", packages=("opacus==1.6.*",), arguments=("default",), private=True),
        Peer(name="opacus ghost", worker="dp_opacus", packages=("opacus==1.6.*",), arguments=("ghost",), private=True),
    )
}


def python(peer: Peer) -> Path:
    """The interpreter of its environment, made if it must be, with the PyTorch that we have; raises Missing."""
    return environment(peer.environment, f"torch=={version('torch')}", "numpy", *peer.packages) / "python"


def write(made: Ready, folder: Path, rounds: int = ROUNDS_GIVEN) -> None:
    """The work for workers: data, initial state, and the batches of some rounds."""
    picks: list[Tensor] = []
    batches: list[list[list[int]]] = []
    begins: list[list[int]] = []
    at = 0
    for index in range(rounds):
        batches.append([])
        begins.append([])
        for client in made.clients:
            drawn = made.drawn(client, index)
            batches[-1].append([len(pick) for pick in drawn])
            begins[-1].append(at)
            at += sum(batches[-1][-1])
            picks += drawn
    workload = made.workload
    told = {
        "network": workload.network,
        "target": workload.target,
        "lr": workload.lr,
        "batch": workload.batch,
        "noise": workload.noise,
        "max_norm": MAX_NORM,
        "sizes": [made.feed.size(client) for client in made.clients],
        "batches": batches,
        "begins": begins,
    }
    (folder / "work.json").write_text(json.dumps(told), encoding="utf-8")
    np.savez(folder / "work.npz", x=made.feed.x.numpy(), y=made.feed.y.numpy(), picks=torch.cat(picks).numpy())
    np.savez(folder / "init.npz", **{k: v.numpy() for k, v in made.task.init.items()})


class Worker:
    """A peer at work."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        """Starts it; raises Missing where it does not run."""
        self.peer, self.folder = peer, folder
        interpreter = python(peer)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        surroundings = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "FREEHOLD_BENCH_WORK": str(folder),
        }
        # Imported, not run: what Flower sends to its actors must not be of `__main__`.
        entry = f"from benchmarks.simulation.workers.{peer.worker} import main; main()"
        command = [str(interpreter), "-c", entry, str(folder), str(theirs_in), str(theirs_out), *peer.arguments]
        self.log = folder / f"{peer.environment}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs_in, theirs_out),
                cwd=folder,
                env=surroundings,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "w"), os.fdopen(ours_in)
        self._hear()

    def round(self, index: int) -> float:
        """Run round `index`; -> seconds of the processor, of all its processes."""
        before = spent(self.process.pid) if self.peer.processes else {}
        heard = self._ask(round=index)
        if not self.peer.processes:
            return float(heard["cpu_s"])
        after = spent(self.process.pid)
        return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())

    def outcome(self) -> Mapping[str, Tensor]:
        """The mean update of the last round."""
        path = self.folder / "outcome.npz"
        self._ask(outcome=str(path))
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def peak_mb(self) -> float:
        """The sum of the peaks of all its processes; pages that they share count in each."""
        return sum(rss_kb(pid, "VmHWM") for pid in tree(self.process.pid)) / 1024

    def close(self) -> None:
        """End it, and whatever it started."""
        below = tree(self.process.pid)
        self._out.close()
        self._in.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in below[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _ask(self, **told: Any) -> dict[str, Any]:
        try:
            self._out.write(json.dumps(told) + "\n")
            self._out.flush()
        except BrokenPipeError:
            pass  # it is gone; what it said last is in its log
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        line = self._in.readline()
        if not line:
            said = [each for each in self.log.read_text(errors="replace").splitlines() if each.strip()]
            self.close()
            raise Missing(f"{self.peer.name} does not run here: {said[-1][:300] if said else 'it says nothing'}")
        heard: dict[str, Any] = json.loads(line)
        return heard


def spent(root: int) -> dict[int, float]:
    """Seconds of the processor of a process and all below it, by number."""
    found: dict[int, float] = {}
    for pid in tree(root):
        try:
            found[pid] = cpu_s(pid)
        except OSError:
            continue
    return found


@contextmanager
def working(peer: Peer, made: Ready) -> Iterator[Worker]:
    """A worker that has the work; ended at the end."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR"), ignore_cleanup_errors=True) as name:
        write(made, Path(name))
        worker = Worker(peer, Path(name))
        try:
            yield worker
        finally:
            worker.close()
