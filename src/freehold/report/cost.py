"""What ε costs: a table of rows with more and less noise, beside the one without and training alone."""

from __future__ import annotations

from collections.abc import Sequence

from freehold.report.result import Comparison, NoisedRow, PrivacyCost, Row
from freehold.report.summary import SHARES, RowSummary, seed_mean, summarize
from freehold.report.wording import NOTHING, change, clean, label, value

WHOSE = {"record": "each training record", "client": "all of a {}"}


def heading(comparison: Comparison) -> str:
    """What is promised, to whom; "" without a promise."""
    cost = comparison.privacy
    if cost is None:
        return ""
    return f"What ε costs: noise for {WHOSE[cost.unit].format(comparison.noun[0])}, δ = {cost.delta:g}"


def cost_lines(comparison: Comparison, summaries: Sequence[RowSummary] = ()) -> list[list[str]]:
    """A header, then a line for each row with noise, the smallest ε first, and the one without; [] where no row has any."""
    cost = comparison.privacy
    if cost is None:
        return []
    by_row = {each.name: each for each in summaries or summarize(comparison)}
    metric, unit = comparison.metric, ", points" if comparison.metric in SHARES else ""
    alone, clear = by_row[comparison.baseline].mean, by_row[cost.clear].mean if cost.clear else None

    def against(mean: float | None, other: float | None) -> str:
        return change(metric, None if mean is None or other is None else mean - other, like=mean)

    head = ["", "ε (planned)", "ε by Rényi", "noise multiplier", f"mean {label(metric)}", f"against alone{unit}"]
    body = []
    for point in ordered(cost):
        mean = by_row[point.row].mean
        told = [rounded_up(point.epsilon), rounded_up(point.epsilon_by_rdp), f"{point.noise_multiplier:.3g}"]
        body.append([title_of(comparison, point.row), *told, value(metric, mean), against(mean, alone)])
        if cost.clear:
            body[-1].append(against(mean, clear))
    if cost.clear:
        head.append(f"against no noise{unit}")
        title = f"{title_of(comparison, cost.clear)}, no noise"
        body.append([title, "no promise", "no promise", NOTHING, value(metric, clear), against(clear, alone), NOTHING])
    return [head, *body]


def rounded_up(epsilon: float) -> str:
    """An ε to three digits, never below; what is not finite is no promise."""
    if not epsilon < float("inf"):
        return "no promise"
    text = f"{epsilon:.3g}"
    if float(text) < epsilon:
        text = f"{float(text) + 10.0 ** (int(f'{epsilon:.2e}'.partition('e')[2]) - 2):.3g}"
    return text


def ordered(cost: PrivacyCost) -> list[NoisedRow]:
    """The smallest ε first."""
    return sorted(cost.points, key=lambda point: point.epsilon)


def _row(comparison: Comparison, name: str) -> Row:
    found = comparison.row(name)
    assert found is not None, "a comparison whose rows are those that it was made of"
    return found


def title_of(comparison: Comparison, name: str) -> str:
    """A row's title."""
    return clean(_row(comparison, name).title, 40)


def by_seed(comparison: Comparison, name: str) -> list[float]:
    """The mean over clients of each seed of a row."""
    means = (seed_mean(comparison, result) for result in _row(comparison, name).results)
    return [each for each in means if each is not None]
