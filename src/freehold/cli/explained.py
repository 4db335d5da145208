"""`--explain`: how each row was computed, and why so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from freehold.cli.console import output, visible

if TYPE_CHECKING:
    from freehold.report import Comparison


def explained(comparison: Comparison) -> None:
    """Print it to standard output."""
    console = output()
    console.print("How it was computed", style="bold")
    for row in comparison.rows:
        if row.execution:
            console.print(visible(row.title))
            for line in _lines(row.execution):
                console.print(f"  {visible(line)}")
    console.print()


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    many = "one client at a time" if told["executor"] == "loop" else f"{told['chunk']} clients at a time"
    yield f"{told['executor']}, {many}: {told['why']}"
    if told["flop_per_step"]:
        yield f"{told['flop_per_step'] / 1e6:.3g} MFLOP per client and step"
    if told["measured_us"]:
        yield "measured per client and step: " + ", ".join(
            f"{name} {us / 1e3:.3g} ms" for name, us in told["measured_us"].items()
        )
    yield f"useful steps {told['useful_steps']:.1%}, useful examples {told['useful_examples']:.1%}"
    yield from (f"fell back: {line}" for line in told["fallbacks"])
    if told["skipped"]:
        yield f"skipped, without training data: {', '.join(told['skipped'])}"
