"""Results as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def tables(name: str, found: Mapping[str, Any]) -> str:
    """One benchmark's results."""
    if name == "connections":
        return _connections(found["points"])
    if name == "peers":
        return "\n".join(f"{size}, four clients\n{_peers(rows)}" for size, rows in found.items())
    if name == "audit":
        return "\n\n".join(_named(rows) for rows in found.values())
    if name == "simulation":
        return _simulation(found)
    if name in ("sandbox", "ledger"):
        return table(list(found), [list(found.values())])
    return _named(found)


def _named(found: Mapping[str, Any]) -> str:
    keys = [key for key, value in next(iter(found.values())).items() if not isinstance(value, dict | str)]
    return table(["", *keys], [[what, *(row.get(key) for key in keys)] for what, row in found.items()])


def _connections(points: Sequence[Mapping[str, Any]]) -> str:
    header = ["nodes", "woken", "kB idle", "kB after bulk", "kB after all answered", "round s", "CPU s", "answered"]
    keys = ("nodes", "cohort", "idle_kb_each", "after_bulk_kb_each", "after_all_answered_kb_each")
    of_round = ("median_s", "coordinator_cpu_s_each", "answered_at_the_end")
    return table(header, [[*(p[key] for key in keys), *(p["round"][key] for key in of_round)] for p in points])


def _peers(rows: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("round_s_median", "server_peak_mb", "client_peak_mb")
    header = ["", "round s", "x ours", "server MB", "x ours", "client MB", "x ours", "transport", "durable"]
    lines, missing = [], []
    for name, row in rows.items():
        if "missing" in row:
            missing.append(f"  {row['missing']}")
            continue
        figures = [value for key in keys for value in (row[key], row["to_ours"][key])]
        lines.append([name, *figures, row["transport"], row["durable"]])
    return "\n".join([table(header, lines), *missing])


def _simulation(found: Mapping[str, Any]) -> str:
    parts = []
    for work, one in found["works"].items():
        header = ["", "s a round", "quartile", "quartile", "x ours", "low", "high", "% of GEMM", "peak MB"]
        lines = []
        for who, row in one["contenders"].items():
            times = row.get("times_ours", {})
            figures = [times.get(key) for key in ("ratio", "low", "high")]
            lines.append(
                [who, row["median_s"], *row["quartiles_s"], *figures, 100 * row["share_of_gemm"], one["peak_mb"].get(who)]
            )
        missing = [f"  {who} is not timed: {why}" for who, why in one["missing"].items()]
        parts.append("\n".join([f"{work}: {one['title']}, {one['clients']} clients", table(header, lines), *missing]))
    if "start" in found:
        parts.append("first round of W1b\n" + _named(found["start"]))
        growth = found["growth"]
        rows = [[p["clients"], p["cpu_s"], p["cpu_ms_each"]] for p in growth["asked"]]
        parts.append(f"all asked; slope {growth['slope']:.3g}\n" + table(["clients", "CPU s a round", "ms each"], rows))
        rows = [[p["population"], p["cohort"], p["cpu_s"]] for p in growth["population"]]
        parts.append(table(["population", "asked", "CPU s a round"], rows))
        over = growth["processes"]
        parts.append(f"two processes: {over.get('missing') or format(over['speedup'], '.3g') + ' times one'}")
    header = ["work", "against", "x ours", "low", "high", "floor", "goal", ""]
    parts.append(table(header, [list(line.values()) for line in found["goals"]]))
    return "\n\n".join(parts)
