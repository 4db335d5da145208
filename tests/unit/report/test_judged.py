"""All differences of a report are judged together: how often nothing looks like something, and what is still told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from freehold.report import ClientFacts, Comparison, Row, SeedResult
from freehold.report.intervals import FALSE_SHARE, LEVEL, common_level, example_variance, examples_tested, judged, repeated_splits
from freehold.report.summary import summarize
from freehold.report.wording import headline

CLIENTS, EXAMPLES, SEEDS = 4, 120, 10
IN_TEST, IN_VALIDATION = 30, 18


def drawn(rng: np.random.Generator, rows: int, *, lift: float = 0.0) -> Comparison:
    """Models of equal skill that err partly on the same examples, tested on many splits of the same data; `lift` is what the
    first row besides the baseline is better."""
    hard = rng.random((CLIENTS, EXAMPLES))
    right = []
    for row in range(rows + 1):
        luck = np.where(rng.random(hard.shape) < 0.7, hard, rng.random(hard.shape))
        right.append((luck < (0.8 + lift if row == 1 else 0.8)).astype(float))
    names = [f"c{i}" for i in range(CLIENTS)]
    orders = rng.permuted(np.tile(np.arange(EXAMPLES), (SEEDS, CLIENTS, 1)), axis=2)

    def result(row: int, seed: int) -> SeedResult:
        test, validation = orders[seed, :, :IN_TEST], orders[seed, :, IN_TEST : IN_TEST + IN_VALIDATION]
        mine, alone = (np.take_along_axis(right[each], test, axis=1) for each in (row, 0))
        errors = (mine - alone).std(axis=1, ddof=1) / math.sqrt(IN_TEST)
        seen = float(np.take_along_axis(right[row], validation, axis=1).mean())
        return SeedResult(
            seed=seed, figures={c: {"accuracy": float(v)} for c, v in zip(names, mine.mean(1), strict=True)}, curve=((1, seen),),
            best_round=1, paired_se=dict(zip(names, errors.tolist(), strict=True)),
        )  # fmt: skip

    return Comparison(
        study="s", title="t", problem="classification", metric="accuracy", higher_is_better=True,
        clients=tuple(
            ClientFacts(
                name=c, examples=EXAMPLES, train=EXAMPLES - IN_TEST - IN_VALIDATION, validation=IN_VALIDATION, test=IN_TEST
            )
            for c in names
        ),
        rows=tuple(
            Row(
                name="local" if row == 0 else f"r{row}", title=f"r{row}", algorithm="x",
                results=tuple(result(row, seed) for seed in range(SEEDS)),
            )
            for row in range(rows + 1)
        ),
        test_share=IN_TEST / (EXAMPLES - IN_TEST - IN_VALIDATION), seeds=tuple(range(SEEDS)), splits="repeated", command="",
    )  # fmt: skip


def test_a_report_in_which_nothing_differs_seldom_shows_a_gain_or_a_loss_and_seldom_leads_with_one() -> None:
    rng = np.random.default_rng(0)
    reports, flagged, led, alone = 150, 0, 0, 0
    for _ in range(reports):
        comparison = drawn(rng, rows=16)
        summaries = summarize(comparison)
        flags = [
            paired
            for row in summaries[1:]
            for paired in (row.paired, *(client.paired for client in row.per_client.values()))
            if paired is not None
        ]
        flagged += any(paired.verdict != "cannot tell" for paired in flags)
        alone += any(paired.at(LEVEL).verdict != "cannot tell" for paired in flags)
        first = headline(comparison, summaries)
        assert first is not None
        shown = next(row for row in summaries if row.name == first.name)
        led += shown.paired is not None and shown.paired.verdict != "cannot tell"
    assert flagged / reports < FALSE_SHARE
    assert led / reports < 0.05
    assert alone / reports > 0.3, "judged one by one, chance would show in many reports: this test can fail"


def test_what_is_clearly_better_is_still_told_among_many_that_are_not() -> None:
    rng = np.random.default_rng(1)
    told = [next(row for row in summarize(drawn(rng, rows=8, lift=0.15)) if row.name == "r1").paired for _ in range(20)]
    assert sum(paired is not None and paired.verdict == "gain" for paired in told) >= 15


@pytest.mark.parametrize("seed", range(20))
def test_verdicts_are_those_of_benjamini_and_hochberg_and_follow_from_the_intervals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = [repeated_splits((rng.normal(0, 1, 10) + rng.choice([0.0, 1.5, -3.0])).tolist(), ratio=0.4) for _ in range(30)]
    p = [paired.p for paired in differences if paired.p is not None]
    adjusted = stats.false_discovery_control(p)
    for before, after, q in zip(differences, judged(differences), adjusted, strict=True):
        assert (after.verdict != "cannot tell") == (q <= FALSE_SHARE and before.verdict != "cannot tell")
        assert before.low is not None and after.low is not None and after.low <= before.low
        if after.verdict != "cannot tell":
            assert after.verdict == before.verdict


def test_a_difference_that_stands_alone_keeps_its_interval() -> None:
    paired = repeated_splits([0.1, 0.2, 0.15, 0.3], ratio=0.4)
    assert judged([paired]) == (paired,)
    assert common_level([]) == LEVEL
    silent = repeated_splits([0.1], ratio=0.4)
    assert judged([silent, paired]) == (silent, paired)


def test_p_is_that_of_the_interval() -> None:
    paired = repeated_splits([0.1, 0.2, 0.15, 0.3], ratio=0.4)
    assert paired.p is not None
    edge = paired.at(1 - paired.p)
    assert edge.low == pytest.approx(0, abs=1e-12)


def test_the_mean_over_clients_is_as_unsure_as_the_sum_of_their_examples_says() -> None:
    comparison = drawn(np.random.default_rng(2), rows=1)
    still = tuple(
        replace(row, results=tuple(replace(row.results[0], seed=seed) for seed in range(SEEDS))) for row in comparison.rows
    )
    (_, row) = summarize(replace(comparison, rows=still))
    tested = examples_tested(examples=EXAMPLES, test=IN_TEST, splits=SEEDS)
    each = []
    for name, summary in row.per_client.items():
        mine, alone = (r.results[0] for r in (still[1], still[0]))
        per_example = mine.paired_se[name] ** 2 * IN_TEST
        first, second = mine.figures[name]["accuracy"], alone.figures[name]["accuracy"]
        assert summary.mean == first
        each.append(example_variance(first, second, per_example=per_example, examples=tested, binary=True) or 0.0)
    assert row.paired is not None and row.paired.spread is not None
    assert row.paired.spread.error == pytest.approx(math.sqrt(sum(each)) / CLIENTS)
