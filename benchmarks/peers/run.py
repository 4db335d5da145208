"""Ours and the peers, one after another in one run, on the same trivial work; ratios to ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import federation
from benchmarks.peers import flower, nvflare
from benchmarks.peers.environment import Missing
from benchmarks.trivial import SIZES, TENSORS

CLIENTS = 4
ROUNDS = {"10kb": 10, "1mb": 8, "50mb": 5, "1gb": 3}
PEERS = {"flower": flower.run, "nvflare": nvflare.run}
COMPARED = ("round_s_median", "server_peak_mb", "client_peak_mb")


def ours(size: str, rounds: int) -> dict[str, object]:
    """Freehold, with one round more: its first is not counted either."""
    found = federation.measure(size, CLIENTS, rounds + 1, watch=True)
    return {
        "round_s_median": round(float(str(found["round_ms_median"])) / 1000, 4),
        "rounds": found["rounds"],
        "server_peak_mb": found["server_tree_peak_mb"],
        "client_peak_mb": found["node_tree_peak_mb"],
        "transport": "HTTP/1.1, mutual TLS",
        "durable": "each contribution and each round",
    }


def run(
    sizes: Sequence[str] = ("10kb", "50mb"), peers: Sequence[str] = tuple(PEERS), rounds: int | None = None
) -> dict[str, object]:
    """Size -> who -> figures. A peer that does not install or run here has `missing`, which says why."""
    results: dict[str, object] = {}
    for size in sizes:
        wanted = rounds or ROUNDS[size]
        rows: dict[str, dict[str, object]] = {"freehold": ours(size, wanted)}
        for name in peers:
            with tempfile.TemporaryDirectory(dir=os.environ.get("FREEHOLD_BENCH_DIR")) as folder:
                try:
                    rows[name] = PEERS[name](
                        Path(folder), size_bytes=SIZES[f"bench-{size}"], tensors=TENSORS, clients=CLIENTS, rounds=wanted
                    )
                except Missing as why:
                    rows[name] = {"missing": str(why)}
        for row in rows.values():
            if "missing" not in row:
                row["to_ours"] = {key: _ratio(row[key], rows["freehold"][key]) for key in COMPARED}
        results[size] = rows
    return results


def _ratio(theirs: object, own: object) -> float | None:
    a, b = float(str(theirs)), float(str(own))
    return round(a / b, 2) if b else None
