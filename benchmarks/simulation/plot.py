"""The figure of a run: how many times ours the others take, and how cost grows with clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.simulation.goals import FLOWER, GHOST, OPACUS, OURS, PFL, PLAIN

SHOWN = (FLOWER, PFL, OPACUS, GHOST, PLAIN)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Left: a bar for each contender and work, with its interval. Right, if it was measured: seconds against clients."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    growth = found.get("growth")
    works = [name for name, one in found["works"].items() if OURS in one["contenders"]]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1)) if growth else (figure.subplots(), None)
    for place, who in enumerate(SHOWN):
        at, ratios, below, above = [], [], [], []
        for index, work in enumerate(works):
            told = found["works"][work]["contenders"].get(who, {}).get("times_ours")
            if told is not None:
                at.append(index + (place - 2) * 0.16)
                ratios.append(told["ratio"])
                below.append(max(told["ratio"] - told["low"], 0))
                above.append(max(told["high"] - told["ratio"], 0))
        if at:
            left.bar(at, ratios, 0.15, yerr=(below, above), label=who, error_kw={"linewidth": 0.8})
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set(yscale="log", ylabel="processor time, times ours", title="a round of the same work")
    left.set_xticks(range(len(works)), works, rotation=30, ha="right")
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, fontsize=8)
    if right is not None:
        points = growth["asked"] if growth else []
        right.loglog([p["clients"] for p in points], [p["cpu_s"] for p in points], "o-")
        right.set(xlabel="clients, all asked", ylabel="CPU seconds a round", title="W1a")
        right.grid(alpha=0.3)
    left.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=120)
