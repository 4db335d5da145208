"""The curves of a comparison, by round and by ε: a picture, its legend and a note each."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from freehold.report import figures
from freehold.report.cost import by_seed, ordered, rounded_up, title_of
from freehold.report.result import Comparison, Row
from freehold.report.summary import SHARES
from freehold.report.wording import FIGURES, clean, label

_DRAWN = 7  # curves with a color of their own


@dataclass(frozen=True, kw_only=True)
class Legend:
    """One learning curve's name and how it is drawn."""

    title: str
    color: str
    dashes: str
    width: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A picture of curves, its legend and a note."""

    picture: str
    legend: tuple[Legend, ...]
    note: str


def learning_curves(comparison: Comparison, *, lead: Row | None) -> Curves | None:
    """One line for each row that was evaluated during training; the baseline and `lead` show the range over seeds."""
    drawn = [(row, averaged) for row in comparison.rows if len((averaged := _average_curve(row)).points) > 1]
    if not drawn:
        return None
    leading = lead.name if lead else ""
    first = sorted(drawn, key=lambda item: (item[0].name != comparison.baseline, item[0].name != leading))
    series = {row.name: place for place, (row, _) in enumerate(first[:_DRAWN])}
    scale = 100 if comparison.metric in SHARES else 1
    curves = [
        figures.Curve(
            points=tuple((at, scale * y) for at, y in curve.points),
            low=tuple(scale * y for y in curve.low) if row.name in (leading, comparison.baseline) else (),
            high=tuple(scale * y for y in curve.high) if row.name in (leading, comparison.baseline) else (),
            series=series.get(row.name),
        )
        for row, curve in drawn
    ]
    name = FIGURES.get(comparison.metric, clean(comparison.metric))
    legend = [legend_of(clean(row.title, 60), series[row.name]) for row, _ in first[:_DRAWN]]
    if len(drawn) > _DRAWN:
        legend.append(Legend(title=f"{len(drawn) - _DRAWN} more", color="--fh-grid", dashes="none", width=1))
    several = len(comparison.seeds) > 1
    return Curves(
        picture=figures.curves(
            curves,
            xlabel="round",
            ylabel=f"{label(comparison.metric)}, validation data",
            description=f"Learning curves: {name} on validation data by round, one line for each of {len(drawn)} rows.",
        ),
        legend=tuple(legend),
        note=f"Mean over {comparison.noun[1]}, on validation data{', then over seeds' if several else ''}."
        + (" Shaded: from the lowest to the highest seed." if any(curve.low for curve in curves) else ""),
    )


def cost_curve(comparison: Comparison) -> Curves | None:
    """The metric by ε, with the range over seeds, between no noise and training alone; None with fewer than two ε."""
    cost = comparison.privacy
    if cost is None or len({point.epsilon for point in cost.points}) < 2:
        return None
    if not all(by_seed(comparison, point.row) for point in cost.points):
        return None
    points, scale = ordered(cost), 100 if comparison.metric in SHARES else 1
    ends = (points[0].epsilon, points[-1].epsilon)
    several = len(comparison.seeds) > 1
    by_point = [[scale * each for each in by_seed(comparison, point.row)] for point in points]
    lines = [
        figures.Curve(
            points=tuple((point.epsilon, sum(each) / len(each)) for point, each in zip(points, by_point, strict=True)),
            low=tuple(map(min, by_point)) if several else (),
            high=tuple(map(max, by_point)) if several else (),
            series=0,
        )
    ]
    legend = [legend_of("with noise", 0)]
    for series, (name, title) in enumerate(((cost.clear, "without noise"), (comparison.baseline, "training alone")), 1):
        if name and (each := by_seed(comparison, name)):
            mean = scale * sum(each) / len(each)
            lines.append(figures.Curve(points=tuple((end, mean) for end in ends), series=series))
            legend.append(legend_of(f"{title_of(comparison, name)}: {title}", series))
    name = FIGURES.get(comparison.metric, clean(comparison.metric))
    return Curves(
        picture=figures.curves(
            lines,
            xlabel="ε, smaller promises more",
            ylabel=f"{label(comparison.metric)}, test data",
            description=f"{name} by ε: a line with noise, and for comparison one without and one for training alone.",
            at=[(point.epsilon, rounded_up(point.epsilon)) for point in points],
            key="cost",
        ),
        legend=tuple(legend),
        note=f"Mean over {comparison.noun[1]}"
        + (", then over seeds; shaded: from the lowest to the highest seed." if several else "."),
    )


def _average_curve(row: Row) -> figures.Curve:
    """The mean over seeds at each round, and the lowest and the highest seed; rounds without a finite value are left out."""
    by_round: dict[int, list[float]] = {}
    for result in row.results:
        for at, y in result.curve:
            if abs(y) < float("inf"):
                by_round.setdefault(at, []).append(y)
    rounds = sorted(by_round)
    several = len(row.results) > 1
    return figures.Curve(
        points=tuple((at, statistics.fmean(by_round[at])) for at in rounds),
        low=tuple(min(by_round[at]) for at in rounds) if several else (),
        high=tuple(max(by_round[at]) for at in rounds) if several else (),
    )


def legend_of(title: str, series: int) -> Legend:
    """How a line of that series is drawn, and what it is called."""
    dashes = figures.DASHES[series % len(figures.DASHES)]
    lengths = "none" if isinstance(dashes, str) else " ".join(f"{2 * length:g}" for length in dashes[1])
    return Legend(title=title, color=f"--fh-series-{series % len(figures.SERIES) + 1}", dashes=lengths, width=2)
