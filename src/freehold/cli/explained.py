"""`--explain`: how rows were computed, and why so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.padding import Padding

from freehold.cli.console import output, visible

if TYPE_CHECKING:
    from freehold.report import Comparison


def explained(comparison: Comparison) -> None:
    """Print it to standard output; rows that were computed alike share their lines."""
    alike: dict[tuple[str, int, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for row in comparison.rows:
        if row.execution:
            told = row.execution
            alike.setdefault((told["executor"], told["chunk"], told["why"]), []).append((row.title, told))
    console = output()
    console.print("How it was computed", style="bold")
    for rows in alike.values():
        console.print(visible(", ".join(title for title, _ in rows)))
        for line in _lines([told for _, told in rows]):
            console.print(Padding(visible(line), (0, 0, 0, 2), expand=False))
    console.print()


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first = rows[0]
    many = "one client at a time" if first["executor"] == "loop" else f"{first['chunk']} clients at a time"
    yield f"{first['executor']}, {many}: {first['why']}" if first["executor"] else first["why"]
    flop = [told["flop_per_step"] / 1e6 for told in rows if told["flop_per_step"]]
    if flop:
        yield f"{_range(flop)} MFLOP per client and step"
    names = dict.fromkeys(name for told in rows for name in told["measured_us"])
    if names and not first["why"].startswith("measured"):
        seen = (f"{name} {_range([t['measured_us'][name] for t in rows if name in t['measured_us']])} µs" for name in names)
        yield f"measured to show it, {', '.join(seen)}: a few steps of this machine, which don't decide in a run so short"
    useful, examples = ([100 * told[name] for told in rows] for name in ("useful_steps", "useful_examples"))
    yield f"useful steps {_range(useful)} %, useful examples {_range(examples)} %"
    yield from (f"fell back: {line}" for line in dict.fromkeys(line for told in rows for line in told["fallbacks"]))
    if skipped := dict.fromkeys(name for told in rows for name in told["skipped"]):
        yield f"skipped, without training data: {', '.join(skipped)}"


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
