"""The report as JSON: every figure of every seed, so that the comparison can be rebuilt; docs/reference/report-json.md.

Fields keep the order of that page, clients and rows that of the comparison, other mappings are sorted by key (label
shares keep the order of the classes). What is not finite is null, never NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from freehold.errors import Unreadable
from freehold.report.intervals import Paired
from freehold.report.result import ClientFacts, Comparison, NoisedRow, PrivacyCost, Problem, Row, SeedResult, Splits
from freehold.report.summary import RowSummary, seed_mean, summarize

FORMAT = 1
T = TypeVar("T")


def to_json(comparison: Comparison) -> dict[str, object]:
    """The comparison and its summary as plain dicts, lists, strings and finite numbers."""
    return {
        "format": FORMAT,
        "study": comparison.study,
        "title": comparison.title,
        "problem": comparison.problem,
        "metric": comparison.metric,
        "higher_is_better": comparison.higher_is_better,
        "baseline": comparison.baseline,
        "splits": comparison.splits,
        "test_share": finite(comparison.test_share),
        "seeds": list(comparison.seeds),
        "noun": list(comparison.noun),
        "asked": comparison.asked,
        "privacy": _privacy(comparison.privacy),
        "rows": [_row(comparison, row, summary) for row, summary in zip(comparison.rows, summarize(comparison), strict=True)],
        "clients": [_client(client) for client in comparison.clients],
        "command": comparison.command,
        "versions": dict(sorted(comparison.versions.items())),
        "notes": list(comparison.notes),
        "warnings": list(comparison.warnings),
    }


def dumps(comparison: Comparison) -> str:
    """`to_json` as text: the same bytes for the same comparison."""
    return json.dumps(to_json(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(document: Mapping[str, object]) -> Comparison:
    """The comparison that `to_json` wrote. `Unreadable` if it is of another format or lacks a field.

    Only what was measured is read; summaries are computed afresh.
    """
    if document.get("format") != FORMAT:
        raise Unreadable(
            f"The report is of format {document.get('format')!r}, but this Freehold reads format {FORMAT}.",
            hint="Write it again with this version: the command is in its field `command`.",
        )
    try:
        read = msgspec.convert(document, _Document)
    except msgspec.ValidationError as error:
        raise Unreadable(
            f"The report is malformed: {error}.", hint="Fields and types are in docs/reference/report-json.md."
        ) from error
    return Comparison(
        study=read.study,
        title=read.title,
        problem=read.problem,
        metric=read.metric,
        higher_is_better=read.higher_is_better,
        clients=tuple(client.facts() for client in read.clients),
        rows=tuple(row.row() for row in read.rows),
        baseline=read.baseline,
        test_share=_float(read.test_share),
        seeds=read.seeds,
        splits=read.splits,
        command=read.command,
        versions=read.versions,
        notes=read.notes,
        warnings=read.warnings,
        noun=read.noun,
        privacy=None if read.privacy is None else read.privacy.cost(),
        asked=read.asked,
    )


class _Seed(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    per_client: dict[str, dict[str, float | None]]
    best_round: int
    best_per_client: dict[str, dict[str, float | None]]
    paired_se: dict[str, float | None]
    served: dict[str, str]
    curve: tuple[tuple[int, float | None], ...]

    def result(self) -> SeedResult:
        return SeedResult(
            seed=self.seed,
            figures={name: _floats(each) for name, each in self.per_client.items()},
            curve=tuple((round_number, _float(value)) for round_number, value in self.curve),
            best_round=self.best_round,
            served=self.served,
            best_figures={name: _floats(each) for name, each in self.best_per_client.items()},
            paired_se=_floats(self.paired_se),
        )


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    algorithm: str
    hyperparameters: dict[str, int | float | str]
    reference: bool
    published: float | None
    published_std: float | None
    seconds: float | None
    execution: dict[str, Any] = {}
    sent_bytes: int
    seeds: tuple[_Seed, ...]

    def row(self) -> Row:
        return Row(
            name=self.name,
            title=self.title,
            algorithm=self.algorithm,
            hyperparameters=self.hyperparameters,
            results=tuple(seed.result() for seed in self.seeds),
            published=self.published,
            published_std=self.published_std,
            seconds=_float(self.seconds),
            execution=self.execution,
            sent_bytes=self.sent_bytes,
            reference=self.reference,
        )


class _Client(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    examples: int
    train: int
    validation: int
    test: int
    labels: dict[str, float | None]
    took_part: bool
    estimated: bool = False

    def facts(self) -> ClientFacts:
        return ClientFacts(
            name=self.name,
            examples=self.examples,
            train=self.train,
            validation=self.validation,
            test=self.test,
            labels=_floats(self.labels),
            took_part=self.took_part,
            estimated=self.estimated,
        )


class _Point(msgspec.Struct, frozen=True, kw_only=True):
    row: str
    epsilon: float | None
    epsilon_by_rdp: float | None
    noise_multiplier: float
    asked: float | None = None


class _Cost(msgspec.Struct, frozen=True, kw_only=True):
    unit: Literal["record", "client"]
    delta: float
    max_norm: float
    clear: str
    points: tuple[_Point, ...]

    def cost(self) -> PrivacyCost:
        points = tuple(
            NoisedRow(
                row=each.row,
                epsilon=math.inf if each.epsilon is None else each.epsilon,
                epsilon_by_rdp=math.inf if each.epsilon_by_rdp is None else each.epsilon_by_rdp,
                noise_multiplier=each.noise_multiplier,
                asked=each.asked,
            )
            for each in self.points
        )
        return PrivacyCost(unit=self.unit, delta=self.delta, max_norm=self.max_norm, clear=self.clear, points=points)


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    study: str
    title: str
    problem: Problem
    metric: str
    higher_is_better: bool
    baseline: str
    splits: Splits
    test_share: float | None
    seeds: tuple[int, ...]
    noun: tuple[str, str]
    rows: tuple[_Row, ...]
    clients: tuple[_Client, ...]
    command: str
    versions: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    privacy: _Cost | None = None
    asked: str = ""


def _row(comparison: Comparison, row: Row, summary: RowSummary) -> dict[str, object]:
    return {
        "name": row.name,
        "title": row.title,
        "algorithm": row.algorithm,
        "hyperparameters": dict(sorted(row.hyperparameters.items())),
        "reference": row.reference,
        "mean": finite(summary.mean),
        "std": finite(summary.std),
        "weighted_mean": finite(summary.weighted_mean),
        "worst": finite(summary.worst),
        "worst_client": summary.worst_client,
        "worst_by_seed": finite(summary.worst_by_seed),
        "lowest_decile": finite(summary.lowest_decile),
        "share_worse_than_local": finite(summary.share_worse),
        "verdicts": {name: summary.verdicts.get(name, 0) for name in ("gain", "loss", "cannot tell")},
        **paired_fields(summary.paired),
        "figures": {name: finite(value) for name, value in summary.figures.items()},
        "best_round_mean": finite(summary.best_round_mean),
        "validation": finite(summary.validation),
        "newcomers_mean": finite(summary.newcomers_mean),
        "published": finite(row.published),
        "published_std": finite(row.published_std),
        "seconds": finite(row.seconds),
        "execution": dict(row.execution),
        "sent_bytes": row.sent_bytes,
        "per_client": {
            name: {
                "mean": finite(client.mean),
                **paired_fields(client.paired),
                **{figure: finite(value) for figure, value in client.figures.items()},
                "served": dict(sorted(client.served.items())),
            }
            for name, client in summary.per_client.items()
        },
        "seeds": [_seed(comparison, result) for result in row.results],
    }


def _privacy(cost: PrivacyCost | None) -> dict[str, object] | None:
    if cost is None:
        return None
    points = [
        {
            "row": each.row,
            "epsilon": finite(each.epsilon),
            "epsilon_by_rdp": finite(each.epsilon_by_rdp),
            "noise_multiplier": each.noise_multiplier,
            "asked": each.asked,
        }
        for each in cost.points
    ]
    return {"unit": cost.unit, "delta": cost.delta, "max_norm": cost.max_norm, "clear": cost.clear, "points": points}


def paired_fields(paired: Paired | None) -> dict[str, object]:
    """A difference as JSON says it."""
    if paired is None:
        return {"difference": None, "interval": None, "verdict": None, "reason": None}
    known = paired.low is not None and paired.high is not None
    return {
        "difference": finite(paired.difference),
        "interval": [finite(paired.low), finite(paired.high)] if known else None,
        "verdict": paired.verdict,
        "reason": paired.reason,
    }


def _seed(comparison: Comparison, result: SeedResult) -> dict[str, object]:
    return {
        "seed": result.seed,
        "mean": finite(seed_mean(comparison, result)),
        "per_client": _figures(comparison, result.figures),
        "best_round": result.best_round,
        "best_per_client": _figures(comparison, result.best_figures),
        "paired_se": {name: finite(value) for name, value in _in_order(comparison, result.paired_se)},
        "served": dict(_in_order(comparison, result.served)),
        "curve": [[round_number, finite(value)] for round_number, value in result.curve],
    }


def _figures(comparison: Comparison, figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        client: {name: finite(value) for name, value in sorted(each.items())} for client, each in _in_order(comparison, figures)
    }


def _in_order(comparison: Comparison, values: Mapping[str, T]) -> list[tuple[str, T]]:
    position = {client.name: index for index, client in enumerate(comparison.clients)}
    return sorted(values.items(), key=lambda item: (position.get(item[0], len(position)), item[0]))


def _client(client: ClientFacts) -> dict[str, object]:
    return {
        "name": client.name,
        "examples": client.examples,
        "train": client.train,
        "validation": client.validation,
        "test": client.test,
        "labels": {label: finite(share) for label, share in client.labels.items()},
        "took_part": client.took_part,
        "estimated": client.estimated,
    }


def finite(value: float | None) -> float | None:
    """The number, or None for one that JSON cannot say."""
    return value if value is not None and math.isfinite(value) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _floats(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _float(value) for name, value in values.items()}
