"""What encryption costs: a state written to the vault and read from it, and the same without encryption, each in a process.

`plain` is what the vault did before: a digest, a file, and the file read whole. Processes take turns.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freehold import durable
from freehold.node.door import Door
from freehold.node.vault import Vault
from freehold.wire.local import Mapped, Memory, close, sealed
from freehold.wire.messages import Settled

TIMES, SIZE_BYTES = 7, 50_000_000
RUN, DIGEST = "0123456789abcdef-0", "0" * 64


def run() -> dict[str, Any]:
    """Medians: processor and wall seconds of a put and of a get, and the most memory that it added meanwhile, in MB.

    The memory of a put has the state itself, which is mapped but not copied.
    """
    taken: dict[str, list[dict[str, float]]] = {"encrypted": [], "plain": []}
    for _ in range(TIMES):
        for kind, found in taken.items():
            with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as folder:
                command = [sys.executable, "-m", "benchmarks.vault", kind, folder]
                found.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    return {
        kind: {key: round(statistics.median(each[key] for each in found), 4) for key in found[0]} for kind, found in taken.items()
    }


def _encrypted(folder: Path) -> tuple[Callable[[int], object], Callable[[], int | None]]:
    door = Door(folder, node="benchmark", peer="")
    vault = Vault(folder, door.anchor)
    vault.pending()

    def put(state: int) -> None:
        vault.put_pending(RUN, 0, DIGEST, state)
        vault.settle(Settled(run=RUN, round=0, counted=DIGEST))

    return put, lambda: vault.committed(RUN)


def _plain(folder: Path) -> tuple[Callable[[int], object], Callable[[], int | None]]:
    path, known = folder / "state", ""

    def put(state: int) -> None:
        nonlocal known
        with Mapped(state) as view:
            durable.write(path, (view[at : at + 2**20] for at in range(0, len(view), 2**20)), point="benchmark.state")
            known = hashlib.sha256(view).hexdigest()

    def get() -> int:
        body = path.read_bytes()
        assert hashlib.sha256(body).hexdigest() == known
        return sealed(body, "personal")

    return put, get


def _measure(kind: str, folder: Path) -> dict[str, float]:
    put, get = (_encrypted if kind == "encrypted" else _plain)(folder)
    memory = Memory("state")
    for _ in range(SIZE_BYTES // 1_000_000):
        memory.write(os.urandom(1_000_000))
    state, found = memory.seal(), {}
    for name, work in (("put", lambda: put(state)), ("get", get)):
        high, _ = _resident(), _forget_peak()
        before, began = _used_s(), time.perf_counter()
        out = work()
        found[f"{name}_cpu_s"], found[f"{name}_s"] = _used_s() - before, time.perf_counter() - began
        found[f"{name}_peak_mb"] = (_resident("VmHWM") - high) / 1e6
        if isinstance(out, int):
            with Mapped(state) as mine, Mapped(out) as theirs:
                assert mine == theirs
            close([out])
    return found


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident(name: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
