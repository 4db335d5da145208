"""Flower: a SuperLink, four SuperNodes and FedAvg in a ServerApp, over plain HTTP on loopback, its state in memory."""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers.environment import Missing, environment
from benchmarks.peers.watch import Watch

PACKAGES = ("flwr==1.42.*", "numpy")
APP = Path(__file__).with_name("flower_app")
PATIENCE_S = 900.0


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run(folder: Path, *, size_bytes: int, tensors: int, clients: int, rounds: int) -> dict[str, object]:
    """The figures of one run; raises Missing where Flower does not install or run."""
    binaries = environment("flower", *PACKAGES)
    port, out = free_port(), folder / "rounds.json"
    home = folder / "home"
    home.mkdir()
    config = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(config, encoding="utf-8")
    surroundings = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": "",
    }
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> int:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [str(binaries / arguments[0]), *arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=surroundings,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process.pid

        link = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        roots = {"server": start("server", *link, "--disable-runtime-dependency-installation")}
        _listening(port, folder / "server.log")
        for i in range(clients):
            node = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
            roots[f"client-{i}"] = start(f"client-{i}", *node)
        told = f"rounds={rounds} bytes={size_bytes} tensors={tensors} clients={clients} out='\"{out}\"'".replace("'", "")
        with Watch(lambda: roots) as watch:
            command = [str(binaries / "flwr"), "run", str(APP), "here", "--run-config", told]
            asked = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings, check=False)
            if asked.returncode:
                raise Missing(f"flower does not run here: {_last(asked.stderr + asked.stdout)}")
            deadline = time.monotonic() + PATIENCE_S
            while not _whole(out):
                if time.monotonic() > deadline:
                    raise Missing(
                        f"flower did not finish within {PATIENCE_S:.0f} s: {_last((folder / 'server.log').read_text())}"
                    )
                time.sleep(0.2)
        began = json.loads(out.read_text(encoding="utf-8"))["began"]
    seconds = [after - before for before, after in itertools.pairwise(began)][1:]
    return {
        "round_s_median": round(statistics.median(seconds), 4),
        "rounds": len(seconds),
        "server_peak_mb": watch.most("server"),
        "client_peak_mb": watch.most("client"),
        "transport": "plain HTTP",
        "durable": "no: state in memory",
    }


def _whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"


def _listening(port: int, log: Path) -> None:
    deadline = time.monotonic() + 60.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise Missing(f"flower's SuperLink does not listen: {_last(log.read_text())}") from None
            time.sleep(0.2)
