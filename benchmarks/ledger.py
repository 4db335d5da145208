"""What the ledger and the guard cost: a long ledger is verified, and a contribution of 50 MB is let out. One process each.

`python -m benchmarks.ledger verify|guard|policy …`: one of them, in this process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LINES = 1_000_000
MB = 50
REPEATS = 7


def write_ledger(path: Path, lines: int) -> None:
    """A ledger as a node writes it, each line signed, but without a sync to the disk after each."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from freehold.node.lines import FORMAT, START, Key, Line, digest

    key, before = Key(Ed25519PrivateKey.generate()), START
    with path.open("wb") as file:
        for n in range(1, lines + 1):
            if n == 1:
                line = Line(prev=before, n=1, time=1.8e9, kind="opened", peer="alice", key=key.public, format=FORMAT)
            else:
                line = Line(
                    prev=before,
                    n=n,
                    time=1.8e9 + n,
                    kind="contribution",
                    peer="https://coordinator.example.org:8443",
                    study="heart",
                    plan="sha256:" + "ab" * 32,
                    run="ab" * 8 + "-0",
                    round=n,
                    dataset="heart",
                    bytes=50_000_000,
                    sha256="cd" * 32,
                    unit="client",
                    epsilon=1.2345,
                    delta=1e-5,
                    sandbox="strict",
                    release="noised",
                    verdict="sent",
                    budget="ef" * 32,
                )
            body = key.sign(line)
            before = digest(body)
            file.write(body + b"\n")


def verified(lines: int) -> dict[str, Any]:
    """Seconds to verify a ledger of so many lines, which is in the page cache."""
    from freehold.node.audit import verify

    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as name:
        path = Path(name) / "ledger.jsonl"
        write_ledger(path, lines)
        began, worked = time.perf_counter(), time.process_time()
        found = verify(path)
        taken, worked = time.perf_counter() - began, time.process_time() - worked
        if found.wrong is not None or found.lines != lines:
            raise SystemExit("the benchmark's own ledger is not whole")
        return {
            "lines": lines,
            "ledger_mb": round(path.stat().st_size / 1e6),
            "verify_s": round(taken, 2),
            "verify_cpu_s": round(worked, 2),
        }


def guarded(megabytes: int) -> dict[str, Any]:
    """Seconds and memory of what the guard does with a contribution once the trainer has answered: the median of some.

    `copies`: how much more memory is in use at the worst moment than before, in sizes of the contribution; that which the
    trainer hands over is one of them.
    """
    import hashlib

    import numpy as np

    from freehold.node.budget import Limits
    from freehold.node.door import Door, Piece
    from freehold.node.release import released
    from freehold.plan import AlgorithmRef, Contribution, Plan, Privacy, TaskRef, TensorSpec, Training, runs_of
    from freehold.wire import codec
    from freehold.wire.local import Mapped, close, sealed

    each = megabytes * 1_000_000 // 4 // 10
    spec = Contribution(tensors=tuple(TensorSpec(name=f"delta/w{i}", shape=(each,), dtype="float32") for i in range(10)))
    plan = Plan(
        name="bench",
        task=TaskRef(name="heart"),
        algorithm=AlgorithmRef(name="fedavg"),
        training=Training(rounds=1000, batch_size=8, epochs=1, weighting="uniform"),
        privacy=Privacy(unit="client", max_norm=1.0, noise_multiplier=4.0),
        contribution=spec,
    )
    rng = np.random.default_rng(0)
    body = codec.write({t.name: rng.standard_normal(each, dtype=np.float32) for t in spec.tensors})
    found: dict[str, list[float]] = {"release_s": [], "hash_s": [], "ledger_s": [], "all_s": [], "all_cpu_s": []}
    copies = 0.0
    with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as name:
        door = Door(Path(name), node="alice", peer="https://c")
        run = runs_of(plan)[0].id
        for index in range(REPEATS):
            piece = Piece(plan=plan, run=run, round=index, dataset="heart", limits=Limits(epsilon_total=1e6), release="noised")
            door.begin(piece)
            before = memory_kb()
            fd = sealed(body, "departing")
            reset_peak()
            worked, t0 = time.process_time(), time.perf_counter()
            out = released(fd, spec, plan.privacy)
            t1 = time.perf_counter()
            with Mapped(out) as view:
                sha256, length = hashlib.sha256(view).hexdigest(), len(view)
            t2 = time.perf_counter()
            door.send("contribution", piece, sha256=sha256, length=length)
            t3, worked = time.perf_counter(), time.process_time() - worked
            copies = max(copies, (peak_kb() - before) * 1024 / len(body) + 1)
            close({fd, out})
            for key, taken in zip(found, (t1 - t0, t2 - t1, t3 - t2, t3 - t0, worked), strict=True):
                found[key].append(taken)
        door.close()
    told: dict[str, Any] = {key: round(statistics.median(values[1:]), 3) for key, values in found.items()}
    return {"contribution_mb": megabytes, **told, "copies": round(copies, 2)}


def decided() -> dict[str, Any]:
    """Microseconds of one decision of a policy: the median of a thousand."""
    from freehold.policy import Facts, decide, parse_policy, sample_policy
    from freehold.study.federated import federated_plan

    plan = federated_plan("heart", "fedavg", companions=[], rounds=100)
    policy = parse_policy(sample_policy("heart").encode())
    facts = Facts(installed=frozenset({"heart"}), now=1.8e9, digest="sha256:" + "ab" * 32, cohort=4, approval="", counted=True)
    taken = []
    for _ in range(1000):
        began = time.perf_counter()
        decide(policy, plan, facts)
        taken.append(time.perf_counter() - began)
    return {"policy_us": round(1e6 * statistics.median(taken), 1)}


def run(lines: int = LINES, megabytes: int = MB) -> dict[str, Any]:
    """All three, each in a process of its own with one thread."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    for words in (["verify", str(lines)], ["guard", str(megabytes)], ["policy"]):
        command = [sys.executable, "-m", "benchmarks.ledger", *words]
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout)
    return found


def memory_kb() -> int:
    """Resident memory; sealed memory counts while it is mapped."""
    return _status("VmRSS")


def peak_kb() -> int:
    """The same at its peak since it was last reset."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Forget the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    answer = decided() if what == "policy" else {"verify": verified, "guard": guarded}[what](int(rest[0]))
    sys.stdout.write(json.dumps(answer) + "\n")
