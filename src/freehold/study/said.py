"""What a study says of its data and of itself: the oddities of a user's table, a title, and the call that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freehold.algorithms.select import FEWEST
from freehold.data import Population, check, told
from freehold.report import Comparison, summarize
from freehold.study.compare import SELECT, SERVE

MOST = 6
"""Oddities that a report repeats; `freehold data check` lists all."""


def oddities(population: Population, *, min_examples: int) -> tuple[str, ...]:
    """The most important findings of `freehold data check`, in its words; notes are left out."""
    serious = [finding for finding in check(population, min_examples=min_examples) if finding.level != "note"]
    # What is wrong with the cells changes what is learned; few examples and lopsided labels show in the report as well.
    serious.sort(key=lambda finding: (finding.level != "error", finding.column is None))
    kept = tuple(told(finding) for finding in serious[:MOST])
    left = len(serious) - len(kept)
    return kept if left == 0 else (*kept, f"{left} more finding{'' if left == 1 else 's'} of this kind: see freehold data check.")


def choice(comparison: Comparison) -> tuple[str, ...]:
    """What the row `select`, if there is one, chooses among for each client, and who would stay with training alone anyhow."""
    served = comparison.row(SELECT)
    if served is None:
        return ()
    titles = {row.name: row.title for row in comparison.rows}
    local, *others = [titles[str(name)] for name in served.hyperparameters.values()]
    few = [client.name for client in comparison.clients if client.validation < FEWEST]
    text = (
        f"{SERVE}: {local}, {' or '.join(others)}, as each {comparison.noun[0]}'s own validation data say; {local} stays unless "
        "another's loss there is lower by more than about one standard error."
    )
    if few:
        who = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        text += f" With fewer than {FEWEST} validation examples {local} stays always: {who}."
    return (text,)


def title_of(population: Population) -> str:
    """What a report on a user's data is called: the file, or for a bare frame its target and its clients' column."""
    schema = population.schema
    if population.name == "frame" and schema is not None:
        return f"{schema.target.name} by {schema.client}" if schema.client else schema.target.name
    return population.name


def call(function: str, data: object, given: Mapping[str, object]) -> str:
    """The Python call, such as `freehold.compare(frame, client='site', target='y', seeds=3)`; what is None or () is left out."""
    named = [f"{name}={value!r}" for name, value in given.items() if value not in (None, (), [], False)]
    shown = repr(str(data)) if isinstance(data, str | Path) else "population" if isinstance(data, Population) else "frame"
    return f"freehold.{function}({', '.join([shown, *named])})"


def beside_published(comparison: Comparison) -> str:
    """How near the rows come to the published table, in a sentence or two."""
    points = {row.name: (row, 100 * (each.mean or 0.0)) for row, each in zip(comparison.rows, summarize(comparison), strict=True)}
    listed = [(row, mean, 100 * row.published) for row, mean in points.values() if row.published is not None]
    spread = [(row, mean, at) for row, mean, at in listed if row.published_std is not None]
    outside = [(row, mean, at) for row, mean, at in spread if abs(mean - at) > 100 * (row.published_std or 0.0)]
    if outside:
        named = ", ".join(f"{row.title} ({mean - at:+.1f} points)".replace("-", "\u2212") for row, mean, at in outside)
        text = (
            f"Farther from the published mean than its published standard deviation over seeds: {named}; the other rows are not."
        )
    else:
        text = f"All {len(spread)} rows with a published standard deviation over seeds lie within it of the published mean."
    others = [(row, mean, at) for row, mean, at in listed if row.published_std is None]
    return text + "".join(f" {row.title} has none, and differs by {abs(mean - at):.1f} points." for row, mean, at in others)
