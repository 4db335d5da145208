"""What tuning found and changed: the trials of each algorithm by validation, and the chosen one's test figures beside those of
the defaults. Plain values, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from freehold.plan import Plan
from freehold.report.document import finite, paired_fields, to_json
from freehold.report.result import Comparison
from freehold.report.summary import SHARES, RowSummary, summarize_all
from freehold.report.wording import NOTHING, against_baseline, clean, label, tally, value

FORMAT = 1
DEFAULTS = "-defaults"
"""What the name of the row of an algorithm's defaults ends in."""
_WIDTH = 40


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A hyper-parameter and where it was looked for."""

    name: str
    low: float
    high: float
    scale: Literal["log", "linear"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial. Figures are means over clients, then over seeds, of validation examples only."""

    hyperparameters: Mapping[str, bool | int | float | str]
    validation: float | None  # of the metric; None: lost
    loss: float | None
    lost: str = ""  # why it counts as lost, if it does
    rode: bool = False  # whether it was computed side by side with others


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One algorithm: what was tried, and what was chosen by validation."""

    name: str
    title: str
    space: tuple[Searched, ...]
    tried: tuple[Tried, ...]  # the first is the defaults
    chosen: int | None  # index in `tried`; None: all trials are lost
    pair: Comparison | None  # test figures of the chosen trial with those of the defaults as the baseline; None: the same one

    @property
    def best(self) -> Tried | None:
        """The chosen trial."""
        return None if self.chosen is None else self.tried[self.chosen]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What came of tuning several algorithms with the same budget.

    `comparison` has the test figures of all of them: rows as of `compare` are the chosen trials, with the defaults beside them
    (`ditto-defaults`), and its baseline is training alone, tuned as well.
    """

    trials: int
    search_seed: int
    algorithms: tuple[Tuned, ...]
    comparison: Comparison
    winner: str  # the algorithm that is best by validation, training alone left aside; "": none
    plan: Plan | None  # that algorithm as it was tuned


def changes(tuning: Tuning) -> dict[str, tuple[RowSummary, RowSummary]]:
    """Algorithm -> (defaults, chosen trial with its difference to the defaults); all differences are judged together."""
    pairs = [each for each in tuning.algorithms if each.pair is not None]
    found = summarize_all([each.pair for each in pairs if each.pair is not None])
    return {each.name: (rows[0], rows[1]) for each, rows in zip(pairs, found, strict=True)}


def tuning_lines(tuning: Tuning) -> list[list[str]]:
    """One line per algorithm: validation and test of the defaults and of what was chosen, and what that changed."""
    metric, changed = tuning.comparison.metric, changes(tuning)
    unit, points = (", %", ", points") if metric in SHARES else ("", "")
    name = label(metric).removesuffix(", %")
    test = {row.name: row for row in summarize_all([tuning.comparison])[0]}
    table = [
        [
            "",
            f"validation {name}{unit}: defaults",
            "chosen",
            f"test {name}{unit}: defaults",
            "tuned",
            f"change on test{points}",
            "gain, loss, cannot tell",
        ]
    ]
    for each in tuning.algorithms:
        first, best, pair = each.tried[0], each.best, changed.get(each.name)
        before = test.get(each.name + DEFAULTS) or (test.get(each.name) if each.chosen == 0 else None)
        after = test.get(each.name)
        table.append(
            [
                clean(each.title, _WIDTH),
                "lost" if first.lost else value(metric, first.validation),
                "lost" if best is None else value(metric, best.validation),
                NOTHING if before is None else value(metric, before.mean),
                NOTHING if after is None else value(metric, after.mean),
                _change(metric, each, pair),
                tally(pair[1]) if pair else NOTHING,
            ]
        )
    return table


def chosen_lines(tuning: Tuning) -> list[list[str]]:
    """One line per algorithm: what was chosen, from what default, how many trials were lost, and how they ran."""
    table = [["", "chosen trial", "what was chosen", "trials lost"]]
    for each in tuning.algorithms:
        lost = sum(bool(trial.lost) for trial in each.tried)
        of = f"{each.chosen + 1} of {len(each.tried)}" if each.chosen is not None else NOTHING
        table.append([clean(each.title, _WIDTH), of, _settings(each), str(lost)])
    return table


def tuning_finding(tuning: Tuning) -> tuple[str, ...]:
    """What tuning changed, in a sentence or two."""
    changed = changes(tuning)
    verdicts = {name: rows[1].paired.verdict for name, rows in changed.items() if rows[1].paired is not None}
    titles = {each.name: clean(each.title) for each in tuning.algorithms}
    parts = []
    for verdict, said in (("gain", "Better on test"), ("loss", "Worse on test"), ("cannot tell", "The data cannot tell")):
        if named := [titles[name] for name, found in verdicts.items() if found == verdict]:
            parts.append(f"{said}: {', '.join(named)}.")
    if same := [titles[each.name] for each in tuning.algorithms if each.chosen == 0]:
        parts.append(f"The defaults won: {', '.join(same)}.")
    if lost := [titles[each.name] for each in tuning.algorithms if each.chosen is None]:
        parts.append(f"Every trial was lost: {', '.join(lost)}.")
    if tuning.winner:
        parts.append(f"Best on validation, training alone aside: {titles[tuning.winner]}.")
    return tuple(parts)


def tuning_json(tuning: Tuning) -> dict[str, object]:
    """All of it as plain dicts, lists, strings and finite numbers; docs/reference/tuning-json.md."""
    changed = changes(tuning)
    return {
        "format": FORMAT,
        "kind": "tuning",
        "trials": tuning.trials,
        "search_seed": tuning.search_seed,
        "winner": tuning.winner,
        "algorithms": [_algorithm(each, changed.get(each.name)) for each in tuning.algorithms],
        "comparison": to_json(tuning.comparison),
    }


def tuning_dumps(tuning: Tuning) -> str:
    """`tuning_json` as text: the same bytes for the same tuning."""
    return json.dumps(tuning_json(tuning), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _change(metric: str, each: Tuned, pair: tuple[RowSummary, RowSummary] | None) -> str:
    if pair is not None:
        return against_baseline(metric, pair[1].paired, like=pair[1].mean)
    if each.chosen == 0:
        return "none: the defaults won"
    return "all trials were lost" if each.chosen is None else "the defaults were lost"


def _settings(each: Tuned) -> str:
    if each.best is None:
        return NOTHING
    before, after = each.tried[0].hyperparameters, each.best.hyperparameters
    parts = [
        f"{one.name} {_number(before.get(one.name))} → {_number(after.get(one.name))}"
        for one in each.space
        if after.get(one.name) != before.get(one.name)
    ]
    return ", ".join(parts) or "the defaults"


def _number(setting: bool | int | float | str | None) -> str:
    return "default" if setting is None else f"{setting:g}" if isinstance(setting, float) else str(setting)


def _algorithm(each: Tuned, pair: tuple[RowSummary, RowSummary] | None) -> dict[str, object]:
    return {
        "name": each.name,
        "title": each.title,
        "space": [{"name": s.name, "low": s.low, "high": s.high, "scale": s.scale} for s in each.space],
        "tried": [
            {
                "hyperparameters": dict(sorted(trial.hyperparameters.items())),
                "validation": finite(trial.validation),
                "loss": finite(trial.loss),
                "lost": trial.lost,
                "rode": trial.rode,
            }
            for trial in each.tried
        ],
        "chosen": each.chosen,
        "change": {
            **paired_fields(None if pair is None else pair[1].paired),
            "verdicts": {name: 0 if pair is None else pair[1].verdicts.get(name, 0) for name in ("gain", "loss", "cannot tell")},
            "per_client": {} if pair is None else {c: paired_fields(own.paired) for c, own in pair[1].per_client.items()},
        },
    }
