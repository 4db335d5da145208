"""The report's tables as plain text cells: what the terminal prints and the page shows, so that they agree.

Every table is a list of equally long rows; the first is the header, and the first cell of each row names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from freehold.report.result import ClientFacts, Comparison, Row
from freehold.report.summary import SHARES, ClientSummary, RowSummary, summarize
from freehold.report.wording import (
    CAUTION,
    FIGURES,
    MARKS,
    NOTHING,
    against_baseline,
    balanced_change,
    change,
    clean,
    label,
    lopsided,
    percent,
    tally,
    value,
)

NAME_WIDTH = 40  # terminal cells a name may take
FEWEST_FOR_DECILE = 11  # with fewer clients the lowest decile is the worst client
SERVED = "node would serve"


def lines(comparison: Comparison, summaries: Sequence[RowSummary] = ()) -> list[list[str]]:
    """The table of rows: the mean, what it is against training alone, the worst client and so on.

    Columns that would be empty in every row are left out. `summaries`: of `summarize`, if there already.
    """
    metric = comparison.metric
    summaries = summaries or summarize(comparison)
    other = [name for name in (summaries[0].figures if summaries else {}) if name != metric]
    columns: dict[str, list[str]] = {"": [clean(row.title, NAME_WIDTH) for row in comparison.rows]}
    columns[f"mean {label(metric)}"] = [value(metric, each.mean) for each in summaries]
    columns["± over seeds"] = [value(metric, each.std, like=each.mean) for each in summaries]
    columns[f"better than alone{', points' if metric in SHARES else ''}"] = [
        against_baseline(metric, each.paired, like=each.mean) for each in summaries
    ]
    columns["gain, loss, cannot tell"] = [tally(each) if each.verdicts else NOTHING for each in summaries]
    columns["worse off than alone"] = [_worse(each) for each in summaries]
    columns[f"worst {comparison.noun[0]}"] = [_worst(comparison, each) for each in summaries]
    if len(comparison.participants) >= FEWEST_FOR_DECILE:
        columns["lowest decile"] = [value(metric, each.lowest_decile) for each in summaries]
    columns[f"mean over examples{', %' if metric in SHARES else ''}"] = [value(metric, each.weighted_mean) for each in summaries]
    for name in other:
        columns[label(name)] = [value(name, each.figures[name]) for each in summaries]
    columns["at the round chosen by validation"] = [value(metric, each.best_round_mean) for each in summaries]
    columns["newcomers"] = [value(metric, each.newcomers_mean) for each in summaries]
    columns["published"] = [_published(metric, row.published, row.published_std) for row in comparison.rows]
    return _transposed({name: cells for name, cells in columns.items() if not name or set(cells) != {NOTHING}})


def client_lines(
    comparison: Comparison,
    summaries: Sequence[RowSummary] = (),
    *,
    clients: Sequence[ClientFacts] | None = None,
) -> list[list[str]]:
    """One line per client (those that took part, unless `clients` are given): alone, each row with its verdict, and what
    the node would serve. Where one class makes accuracy say little, the difference of balanced accuracy stands beside it."""
    metric = comparison.metric
    summaries = summaries or summarize(comparison)
    chosen = comparison.participants if clients is None else clients
    columns = {comparison.noun[0]: [clean(client.name, NAME_WIDTH) for client in chosen]}
    columns["test examples"] = [str(client.test) for client in chosen]
    odd = lopsided(comparison)
    alone = next((each for each in summaries if each.name == comparison.baseline), None)
    for row, summary in zip(comparison.rows, summaries, strict=True):
        cells = [_cell(metric, summary.per_client[client.name]) for client in chosen]
        if summary is not alone:
            cells = [
                f"{cell} {CAUTION} bal. {balanced_change(comparison, summary, alone, client.name)}"
                if client.name in odd
                else cell
                for cell, client in zip(cells, chosen, strict=True)
            ]
        columns[_unused(clean(row.title, NAME_WIDTH), columns)] = cells
    serving = [
        (row, summary)
        for row, summary in zip(comparison.rows, summaries, strict=True)
        if any(summary.per_client[client.name].served for client in chosen)
    ]
    for row, summary in serving:
        title = SERVED if len(serving) == 1 else f"{SERVED} ({clean(row.title, NAME_WIDTH)})"
        columns[_unused(title, columns)] = [_served(comparison, row, summary.per_client[client.name].served) for client in chosen]
    return _transposed(columns)


def balanced_lines(comparison: Comparison, summaries: Sequence[RowSummary], *, clients: Sequence[ClientFacts]) -> list[list[str]]:
    """One line per client: balanced accuracy with each row, in brackets the difference to training alone; [] where rows
    are not compared by accuracy, or balanced accuracy was not measured."""
    name = "balanced_accuracy"
    if comparison.metric != "accuracy" or not any(name in summary.figures for summary in summaries):
        return []
    alone = next((each for each in summaries if each.name == comparison.baseline), None)
    columns = {comparison.noun[0]: [clean(client.name, NAME_WIDTH) for client in clients]}
    for row, summary in zip(comparison.rows, summaries, strict=True):
        figures = [value(name, summary.per_client[client.name].figures.get(name)) for client in clients]
        beside = [NOTHING if summary is alone else balanced_change(comparison, summary, alone, each.name) for each in clients]
        columns[_unused(clean(row.title, NAME_WIDTH), columns)] = [
            figure if change == NOTHING else f"{figure} ({change})" for figure, change in zip(figures, beside, strict=True)
        ]
    return _transposed(columns)


def by_client(table: list[list[str]]) -> list[list[str]]:
    """One line per row of the comparison where there are more of these than clients."""
    return [list(column) for column in zip(*table, strict=True)] if len(table[0]) > len(table) else table


def columns_of(table: list[list[str]], wanted: Callable[[str], bool]) -> list[list[str]]:
    """The columns whose header is `wanted`."""
    chosen = [index for index, header in enumerate(table[0]) if wanted(header)]
    return [[line[index] for index in chosen] for line in table]


def facts_lines(comparison: Comparison, *, clients: Sequence[ClientFacts] | None = None) -> list[list[str]]:
    """One line per client: how many examples, and the largest classes."""
    chosen = comparison.clients if clients is None else clients
    columns = {
        comparison.noun[0]: [clean(client.name, NAME_WIDTH) for client in chosen],
        "examples": [_estimate(client.examples, client) for client in chosen],
        "train": [_estimate(client.train, client) for client in chosen],
        "validation": [str(client.validation) for client in chosen],
        "test": [str(client.test) for client in chosen],
    }
    if any(client.labels for client in chosen):
        columns["labels"] = [label_shares(client.labels) for client in chosen]
    return _transposed(columns)


def _estimate(count: int, client: ClientFacts) -> str:
    return f"about {count}" if client.estimated else str(count)


def label_shares(labels: Mapping[str, float]) -> str:
    """'ill: 94 %, healthy: 6 %'; the three largest of more than four classes, and how many more there are."""
    held = sorted((item for item in labels.items() if item[1] > 0), key=lambda item: -item[1])
    shown = held if len(held) <= 4 else held[:3]
    parts = [f"{_class(name)}: {percent(share)}" for name, share in shown]
    if len(held) > len(shown):
        parts.append(f"{len(held) - len(shown)} more")
    return ", ".join(parts) or NOTHING


def _class(name: str) -> str:
    """A class's name; a bare number says what it is."""
    return f"class {name}" if name.isdigit() else clean(name, 24)


def _worse(summary: RowSummary) -> str:
    compared = sum(summary.verdicts.values())
    return NOTHING if summary.worse_than_baseline is None else f"{summary.worse_than_baseline} of {compared}"


def _worst(comparison: Comparison, summary: RowSummary) -> str:
    if summary.worst is None or summary.worst_client is None:
        return NOTHING
    return f"{value(comparison.metric, summary.worst)} ({clean(summary.worst_client, 20)})"


def _published(metric: str, mean: float | None, std: float | None) -> str:
    return value(metric, mean) if std is None else f"{value(metric, mean)} ± {value(metric, std, like=mean)}"


def _cell(metric: str, client: ClientSummary) -> str:
    paired = client.paired
    if paired is None or paired.difference is None:
        return value(metric, client.mean)
    return f"{value(metric, client.mean)} ({change(metric, paired.difference, like=client.mean)}) {MARKS[paired.verdict]}"


def _served(comparison: Comparison, row: Row, served: Mapping[str, int]) -> str:
    """What `select` would serve, by the titles of the rows that it chooses among, the most frequent first."""
    ordered = sorted(served.items(), key=lambda item: (-item[1], item[0]))
    chosen = [comparison.row(str(row.hyperparameters.get(kind, ""))) for kind, _ in ordered]
    titles = [clean(kind if of is None else of.title, NAME_WIDTH) for (kind, _), of in zip(ordered, chosen, strict=True)]
    if len(ordered) == 1:
        return titles[0]
    return ", ".join(f"{title} {count}×" for title, (_, count) in zip(titles, ordered, strict=True)) or NOTHING


def _unused(name: str, taken: Mapping[str, object]) -> str:
    return name if name not in taken else _unused(f"{name} ", taken)


def _transposed(columns: Mapping[str, Sequence[str]]) -> list[list[str]]:
    return [list(columns), *(list(cells) for cells in zip(*columns.values(), strict=True))]


HEADER_HELP: Mapping[str, str] = {
    "mean": "Mean over those that took part, each counting the same, after the last round; then over seeds.",
    "±": "Standard deviation, over seeds, of that mean.",
    "better": "Mean paired difference to training alone, with its interval (95 % or wider); positive is better.",
    "gain,": "How many gain (▲), lose (▼), and for how many the data cannot tell (○).",
    "worse": "How many have a lower mean than alone, by their point estimates: certain or not.",
    "worst": "The one with the worst mean over seeds.",
    "lowest": "The value that the worst tenth does not exceed.",
    "at": "The mean at the round that the validation data chose.",
    "newcomers": "Mean over those that never took part.",
    "published": "The published mean that this row reproduces.",
}


def explain(header: str) -> str:
    """What a column of `lines` means, or ""."""
    if header.startswith("mean over examples"):
        return "The same mean with each one counting by its test examples."
    if any(header == label(figure) for figure in FIGURES):
        return "Mean over those that took part and over seeds."
    return HEADER_HELP.get(header.split(" ")[0], "")
