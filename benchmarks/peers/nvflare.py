"""NVFlare: a provisioned server and four clients (its POC mode: mutual TLS on loopback), FedAvg over a NumPy array."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.environment import Missing, environment
from benchmarks.peers.watch import Watch

PACKAGES = ("nvflare==2.9.*", "numpy")
HERE = Path(__file__).with_name("nvflare_job")
PATIENCE_S = 900.0


def run(folder: Path, *, size_bytes: int, tensors: int, clients: int, rounds: int) -> dict[str, object]:
    """The figures of one run; raises Missing where NVFlare does not install or run. `tensors` is not used: it sends one array."""
    binaries = environment("nvflare", *PACKAGES)
    times = folder / "times"
    times.mkdir()
    surroundings = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
        "FREEHOLD_BENCH_OUT": str(times),
        "PYTHONPATH": "",
    }

    def do(*arguments: str, limit_s: float = 120.0) -> None:
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, cwd=folder, env=surroundings, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"nvflare does not run here: {Path(arguments[0]).name} took longer than {limit_s:.0f} s") from None
        if done.returncode:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise Missing(f"nvflare does not run here: {said[-1][:300] if said else done.returncode}")

    python, script = str(binaries / "python"), str(HERE / "job.py")
    do(python, script, "export", str(folder / "job"), str(size_bytes), str(clients), str(rounds))
    do(str(binaries / "nvflare"), "poc", "prepare", "-n", str(clients), "--force")
    kits = folder / "poc" / "example_project" / "prod_00"
    with ExitStack() as stack:
        roots = {}
        for name in ("server", *(f"site-{i + 1}" for i in range(clients))):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [str(kits / name / "startup" / "sub_start.sh"), "--once"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=surroundings,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            roots[name] = process.pid
        with Watch(lambda: roots) as watch:
            job = str(folder / "job" / "trivial")
            do(python, script, "submit", str(kits / "admin@nvidia.com"), job, str(clients), limit_s=PATIENCE_S)
    came = [[float(line) for line in path.read_text().split()] for path in times.iterdir()]
    seconds = [after - before for each in came for before, after in itertools.pairwise(each[1:])]
    if not seconds:
        raise Missing("nvflare does not run here: no client was given a model three times")
    return {
        "round_s_median": round(statistics.median(seconds), 4),
        "rounds": max(map(len, came)) - 2,
        "server_peak_mb": watch.most("server"),
        "client_peak_mb": watch.most("site"),
        "transport": "gRPC, mutual TLS",
        "durable": "the model after each round",
    }
