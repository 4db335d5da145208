"""The comparison in numbers: per row and per client, each beside training alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from freehold.report.intervals import (
    FEWEST_SEEDS,
    Paired,
    example_variance,
    examples_tested,
    fixed_split,
    judged,
    repeated_splits,
)
from freehold.report.result import ClientFacts, Comparison, Row, SeedResult

LOWER_IS_BETTER = frozenset({"log_loss", "rmse", "mae"})
SHARES = frozenset({"accuracy", "balanced_accuracy"})  # figures that are shares, shown in percent


@dataclass(frozen=True, kw_only=True)
class ClientSummary:
    """One client in one row: each figure's mean over seeds, the paired difference to the baseline (None: there is no
    baseline, or this is it), and how often `select` would serve what."""

    mean: float | None
    figures: Mapping[str, float | None]
    paired: Paired | None
    served: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RowSummary:
    """One row. All but `per_client` and `newcomers_mean` is about the clients that took part.

    `mean`: over clients (each counts the same), then over seeds; `std` over seeds, of the mean over clients.
    `weighted_mean`: clients count by test examples. `worst`: the client with the worst mean over seeds, `worst_client`;
    `worst_by_seed`: the worst client's value in each seed, averaged. `lowest_decile`: the value that 10 % of clients do
    not exceed, one of the clients' own (of fewer than 11 clients, the worst). `worse_than_baseline`: how many
    clients have a lower mean than alone, `share_worse` their share, whether or not that is certain; `verdicts` says
    what is certain. `paired`: the mean over clients against the baseline's, for these clients and no others.
    `best_round_mean`: the mean at the round that validation chose. `validation`: what validation data say of the row.
    """

    name: str
    mean: float | None
    std: float | None
    weighted_mean: float | None
    worst: float | None
    worst_client: str | None
    worst_by_seed: float | None
    lowest_decile: float | None
    worse_than_baseline: int | None
    share_worse: float | None
    verdicts: Mapping[str, int]
    paired: Paired | None
    figures: Mapping[str, float | None]
    best_round_mean: float | None
    validation: float | None
    newcomers_mean: float | None
    per_client: Mapping[str, ClientSummary]


def summarize(comparison: Comparison) -> tuple[RowSummary, ...]:
    """One summary per row, in the order of the rows. All differences of the report are judged together (see `intervals`)."""
    return summarize_all([comparison])[0]


def summarize_all(comparisons: Sequence[Comparison]) -> tuple[tuple[RowSummary, ...], ...]:
    """`summarize` for each of several comparisons that stand in one report: the differences of all are judged together."""
    found = {(at, *key): paired for at, each in enumerate(comparisons) for key, paired in _differences(each).items()}
    told = dict(zip(found, judged(list(found.values())), strict=True))
    return tuple(
        tuple(_summarize(each, row, {key[1:]: paired for key, paired in told.items() if key[0] == at}) for row in each.rows)
        for at, each in enumerate(comparisons)
    )


def _differences(comparison: Comparison) -> dict[tuple[str, str | None], Paired]:
    """Of each row and client to the baseline, not judged yet; None: of the mean over clients."""
    baseline = comparison.row(comparison.baseline)
    others = [row for row in comparison.rows if baseline is not None and row is not baseline]
    if baseline is None:
        return {}
    return {
        **{
            (row.name, client.name): _paired(comparison, row, baseline, client) for row in others for client in comparison.clients
        },
        **{(row.name, None): _paired_mean(comparison, row, baseline) for row in others},
    }


def mean(values: Iterable[float]) -> float | None:
    """The mean of the finite ones among `values`, None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def seed_mean(comparison: Comparison, result: SeedResult, metric: str = "") -> float | None:
    """The mean over the clients that took part, in one seed."""
    return mean(_value(result, client.name, metric or comparison.metric) for client in comparison.participants)


def _summarize(comparison: Comparison, row: Row, told: Mapping[tuple[str, str | None], Paired]) -> RowSummary:
    metric, sign = comparison.metric, 1 if comparison.higher_is_better else -1
    names = figure_names(comparison)
    per_client = {
        client.name: _client(comparison, row, told.get((row.name, client.name)), client, names) for client in comparison.clients
    }
    means = {client.name: value for client in comparison.participants if (value := per_client[client.name].mean) is not None}
    ordered = sorted(means, key=lambda name: sign * means[name])
    compared = [per_client[client.name].paired for client in comparison.participants]
    differences = [paired.difference for paired in compared if paired is not None and paired.difference is not None]
    worse = sum(difference < 0 for difference in differences)
    by_seed = [value for result in row.results if (value := seed_mean(comparison, result)) is not None]
    return RowSummary(
        name=row.name,
        mean=mean(by_seed),
        std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        weighted_mean=_weighted(means, comparison.participants),
        worst=means[ordered[0]] if ordered else None,
        worst_client=ordered[0] if ordered else None,
        worst_by_seed=mean(_worst(comparison, result) for result in row.results),
        lowest_decile=means[ordered[math.ceil(len(ordered) / 10) - 1]] if ordered else None,
        worse_than_baseline=worse if differences else None,
        share_worse=worse / len(differences) if differences else None,
        verdicts=Counter(paired.verdict for paired in compared if paired is not None and paired.difference is not None),
        paired=told.get((row.name, None)),
        figures={name: mean(_each_seed(comparison, row.results, name)) for name in names},
        best_round_mean=mean(
            _value(result, client.name, metric, best=True) for result in row.results for client in comparison.participants
        ),
        validation=mean(_chosen_value(result) for result in row.results),
        newcomers_mean=mean(_none_is_nan(per_client[client.name].mean) for client in comparison.newcomers),
        per_client=per_client,
    )


def figure_names(comparison: Comparison) -> tuple[str, ...]:
    """Every figure that any row measured: the comparison's metric first, the others by name."""
    found = {name for row in comparison.rows for result in row.results for each in result.figures.values() for name in each}
    return (comparison.metric, *sorted(found - {comparison.metric}))


def _client(comparison: Comparison, row: Row, paired: Paired | None, client: ClientFacts, names: Sequence[str]) -> ClientSummary:
    figures = {name: mean(_value(result, client.name, name) for result in row.results) for name in names}
    return ClientSummary(
        mean=figures[comparison.metric],
        figures=figures,
        paired=paired,
        served=Counter(result.served[client.name] for result in row.results if client.name in result.served),
    )


def _paired(comparison: Comparison, row: Row, baseline: Row, client: ClientFacts) -> Paired:
    sign = 1 if comparison.higher_is_better else -1
    differences = [
        sign * (_value(mine, client.name, comparison.metric) - _value(alone, client.name, comparison.metric))
        for mine, alone in _same_seed(row, baseline)
    ]
    variance = _example_variance(comparison, row, baseline, client)
    if comparison.splits == "fixed":
        return fixed_split(differences, variance=variance, examples=client.test)
    return repeated_splits(differences, ratio=_ratio(comparison, client), least_variance=variance or 0.0)


def _paired_mean(comparison: Comparison, row: Row, baseline: Row) -> Paired:
    """The clients' test sets have nothing in common, so their example variances add up; their training does not part."""
    sign = 1 if comparison.higher_is_better else -1
    clients = comparison.participants
    differences = [
        _none_is_nan(
            mean(
                sign * (_value(mine, client.name, comparison.metric) - _value(alone, client.name, comparison.metric))
                for client in clients
            )
        )
        for mine, alone in _same_seed(row, baseline)
    ]
    each = [_example_variance(comparison, row, baseline, client) for client in clients]
    known = [variance for variance in each if variance is not None]
    total = sum(known) / len(clients) ** 2 if known else None
    if comparison.splits == "fixed":
        complete = len(known) == len(clients)
        return fixed_split(differences, variance=total if complete else None, examples=sum(client.test for client in clients))
    ratio = sum(_ratio(comparison, client) for client in clients) / max(len(clients), 1)
    return repeated_splits(differences, ratio=ratio, least_variance=total or 0.0)


def _example_variance(comparison: Comparison, row: Row, baseline: Row, client: ClientFacts) -> float | None:
    """The variance of the mean difference that the finite number of `client`'s examples alone brings about."""
    pairs = _same_seed(row, baseline)
    measured = mean(
        mine.paired_se.get(client.name, math.nan) ** 2 * client.test for mine, _ in pairs if client.name in mine.paired_se
    )
    first = mean(_value(mine, client.name, comparison.metric) for mine, _ in pairs)
    second = mean(_value(alone, client.name, comparison.metric) for _, alone in pairs)
    if first is None or second is None:
        return None
    tested = float(client.test)
    if comparison.splits == "repeated":
        tested = examples_tested(examples=client.examples, test=client.test, splits=max(len(pairs), FEWEST_SEEDS))
    return example_variance(first, second, per_example=measured, examples=tested, binary=comparison.metric == "accuracy")


def _same_seed(row: Row, baseline: Row) -> list[tuple[SeedResult, SeedResult]]:
    alone = {result.seed: result for result in baseline.results}
    return [(result, alone[result.seed]) for result in row.results if result.seed in alone]


def _ratio(comparison: Comparison, client: ClientFacts) -> float:
    return client.test / client.train if client.train > 0 and client.test > 0 else comparison.test_share


def _value(result: SeedResult, client: str, figure: str, *, best: bool = False) -> float:
    return (result.best_figures if best else result.figures).get(client, {}).get(figure, math.nan)


def _each_seed(comparison: Comparison, results: Sequence[SeedResult], figure: str) -> list[float]:
    return [_none_is_nan(seed_mean(comparison, result, figure)) for result in results]


def _worst(comparison: Comparison, result: SeedResult) -> float:
    values = [_value(result, client.name, comparison.metric) for client in comparison.participants]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan
    return min(finite) if comparison.higher_is_better else max(finite)


def _chosen_value(result: SeedResult) -> float:
    """The validation value at the chosen round, or the last one."""
    if not result.curve:
        return math.nan
    return dict(result.curve).get(result.best_round, result.curve[-1][1])


def _weighted(means: Mapping[str, float], clients: Sequence[ClientFacts]) -> float | None:
    weights = {client.name: client.test for client in clients if client.name in means}
    total = sum(weights.values())
    return sum(means[name] * weight for name, weight in weights.items()) / total if total else None


def _none_is_nan(value: float | None) -> float:
    return math.nan if value is None else value
