from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from freehold.errors import UsageError
from freehold.report import ClientFacts, Comparison, Row, SeedResult, summarize
from tests.unit.report.comparisons import facts, hospitals, phones, stations


def tiny(
    values: dict[str, list[list[float]]],
    *,
    clients: tuple[ClientFacts, ...] | None = None,
    higher: bool = True,
    splits: str = "repeated",
) -> Comparison:
    """`values`: row -> seed -> client -> metric. Accuracy if higher is better, else RMSE."""
    width = len(next(iter(values.values()))[0])
    clients = clients or tuple(facts(f"c{place}", 400, {}) for place in range(width))
    metric = "accuracy" if higher else "rmse"
    rows = tuple(
        Row(
            name=name,
            title=name,
            algorithm=name,
            results=tuple(
                SeedResult(seed=seed, figures={c.name: {metric: v} for c, v in zip(clients, line, strict=True)})
                for seed, line in enumerate(lines)
            ),
        )
        for name, lines in values.items()
    )
    return Comparison(
        study="tiny", title="Tiny", problem="classification" if higher else "regression", metric=metric, higher_is_better=higher,
        clients=clients, rows=rows, test_share=0.4, seeds=tuple(range(len(next(iter(values.values()))))),
        splits="fixed" if splits == "fixed" else "repeated", command="freehold compare tiny",
    )  # fmt: skip


def test_the_mean_is_over_clients_then_seeds_and_the_deviation_over_seeds() -> None:
    (row,) = summarize(tiny({"local": [[0.5, 0.7], [0.6, 1.0]]}))
    assert row.mean == pytest.approx(0.7)
    assert row.std == pytest.approx(np.std([0.6, 0.8], ddof=1))


def test_one_seed_has_no_deviation() -> None:
    (row,) = summarize(tiny({"local": [[0.5, 0.7]]}))
    assert row.std is None


def test_the_weighted_mean_counts_test_examples() -> None:
    clients = (facts("large", 400, {}), facts("small", 40, {}))
    (row,) = summarize(tiny({"local": [[1.0, 0.0]]}, clients=clients))
    assert row.weighted_mean == pytest.approx(100 / 110)


def test_the_worst_client_is_the_one_with_the_worst_mean() -> None:
    (row,) = summarize(tiny({"local": [[0.2, 0.4], [0.8, 0.4]]}))
    assert (row.worst, row.worst_client) == (pytest.approx(0.4), "c1")
    assert row.worst_by_seed == pytest.approx(0.3)


def test_where_lower_is_better_the_worst_is_the_highest_and_a_decrease_a_gain() -> None:
    local, ditto = summarize(
        tiny({"local": [[4.0, 5.0], [4.1, 5.1], [4.0, 5.2]], "ditto": [[3.0, 5.9], [3.0, 6.0], [3.1, 6.0]]}, higher=False)
    )
    assert local.worst_client == ditto.worst_client == "c1"
    assert ditto.per_client["c0"].paired is not None and ditto.per_client["c0"].paired.verdict == "gain"
    assert ditto.per_client["c1"].paired is not None and ditto.per_client["c1"].paired.verdict == "loss"
    assert (ditto.worse_than_baseline, ditto.share_worse) == (1, 0.5)


def test_the_lowest_decile_is_a_client_that_a_tenth_do_not_exceed() -> None:
    levels = [place / 20 for place in range(20)]
    (row,) = summarize(tiny({"local": [levels]}))
    assert row.lowest_decile == pytest.approx(levels[1])
    (row,) = summarize(tiny({"local": [levels[:4]]}))
    assert row.lowest_decile == row.worst


def test_the_baseline_is_not_compared_with_itself() -> None:
    local, ditto = summarize(tiny({"local": [[0.5], [0.5], [0.5]], "ditto": [[0.9], [0.91], [0.9]]}))
    assert local.paired is None and local.share_worse is None and not local.verdicts
    assert ditto.paired is not None and ditto.paired.verdict == "gain"


def test_without_the_baseline_there_are_means_and_no_verdicts() -> None:
    (row,) = summarize(tiny({"ditto": [[0.5], [0.5], [0.5]]}))
    assert row.mean == pytest.approx(0.5)
    assert row.paired is None and row.share_worse is None


def test_only_equal_seeds_are_paired() -> None:
    comparison = tiny({"local": [[0.5]] * 3, "ditto": [[0.9]] * 3})
    local, ditto = comparison.rows
    shifted = tuple(dataclasses.replace(result, seed=result.seed + 100) for result in ditto.results)
    row = summarize(dataclasses.replace(comparison, rows=(local, dataclasses.replace(ditto, results=shifted))))[1]
    assert row.paired is not None and row.paired.difference is None and not row.verdicts


def test_a_figure_without_meaning_is_left_out_of_means() -> None:
    comparison = tiny({"local": [[0.5, math.nan], [0.7, 0.9]], "ditto": [[0.5, 0.4], [0.7, math.inf]]})
    local, ditto = summarize(comparison)
    assert local.per_client["c1"].mean == pytest.approx(0.9)
    assert ditto.per_client["c1"].mean == pytest.approx(0.4)
    assert ditto.per_client["c1"].paired is not None and ditto.per_client["c1"].paired.difference is None


def test_newcomers_are_kept_out_of_the_mean_and_reported_apart() -> None:
    clients = (facts("old", 400, {}), facts("new", 400, {}, took_part=False))
    (row,) = summarize(tiny({"local": [[0.9, 0.1]] * 3}, clients=clients))
    assert (row.mean, row.worst_client, row.newcomers_mean) == (pytest.approx(0.9), "old", pytest.approx(0.1))
    assert row.per_client["new"].mean == pytest.approx(0.1)


def test_a_fixed_split_without_measurement_is_as_wide_as_its_test_set_is_small() -> None:
    values = {"local": [[0.70]] * 5, "ditto": [[0.78]] * 5}
    assert summarize(tiny(values, splits="fixed"))[1].verdicts == {"cannot tell": 1}
    large = (facts("c0", 40_000, {}),)
    assert summarize(tiny(values, splits="fixed", clients=large))[1].verdicts == {"gain": 1}


def test_a_measured_difference_narrows_the_interval() -> None:
    plain = hospitals()
    bare = dataclasses.replace(
        plain,
        rows=tuple(
            dataclasses.replace(row, results=tuple(dataclasses.replace(result, paired_se={}) for result in row.results))
            for row in plain.rows
        ),
    )
    for measured, unmeasured in zip(summarize(plain), summarize(bare), strict=True):
        if measured.paired is not None and unmeasured.paired is not None:
            assert measured.paired.low is not None and unmeasured.paired.low is not None
            assert measured.paired.low >= unmeasured.paired.low


def test_every_row_and_client_of_realistic_comparisons_has_its_summary() -> None:
    for comparison in (hospitals(), hospitals(seeds=1), stations(), phones(50)):
        for row in summarize(comparison):
            assert set(row.per_client) == {client.name for client in comparison.clients}
            assert row.mean is not None and row.worst is not None
            assert sum(row.verdicts.values()) == (0 if row.name == "local" else len(comparison.participants))


def test_the_hospitals_show_gains_a_loss_and_doubt() -> None:
    by_name = {row.name: row for row in summarize(hospitals())}
    assert by_name["ditto"].verdicts == {"gain": 2, "cannot tell": 2}
    assert by_name["fedavg"].verdicts == {"loss": 1, "cannot tell": 3}


def test_what_select_serves_is_counted_over_seeds() -> None:
    ditto = summarize(hospitals())[-1]
    assert sum(ditto.per_client["Hungary"].served.values()) == 10


def test_two_clients_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="names must differ"):
        tiny({"local": [[0.1, 0.2]]}, clients=(facts("same", 10, {}), facts("same", 10, {})))


def test_a_comparison_without_clients_or_rows_has_no_numbers() -> None:
    empty = dataclasses.replace(hospitals(), clients=())
    assert all(row.mean is None and row.worst is None for row in summarize(empty))
    assert summarize(dataclasses.replace(hospitals(), rows=())) == ()


@pytest.mark.parametrize("noun", [("", "clients"), ("cli\u202eent", "clients"), ("client", "a\nb")])
def test_a_noun_is_words_that_can_be_seen(noun: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="letters that can be seen"):
        dataclasses.replace(hospitals(seeds=1), noun=noun)


def test_the_weights_are_test_examples_and_not_train_examples() -> None:
    unlike = (
        ClientFacts(name="a", examples=120, train=100, validation=0, test=20),
        ClientFacts(name="b", examples=120, train=40, validation=0, test=80),
    )
    (row,) = summarize(tiny({"local": [[1.0, 0.0]]}, clients=unlike))
    assert row.weighted_mean == pytest.approx(0.2)


def test_a_client_that_is_as_well_off_as_alone_is_not_worse_off() -> None:
    row = summarize(tiny({"local": [[0.5, 0.5, 0.5]] * 3, "ditto": [[0.5, 0.4, 0.6]] * 3}))[1]
    assert row.worse_than_baseline == 1
    assert row.share_worse == pytest.approx(1 / 3)


def test_the_round_that_validation_chose_has_its_own_test_mean_and_its_validation_value() -> None:
    comparison = tiny({"local": [[0.5, 0.7]]})
    (local,) = comparison.rows
    chosen = dataclasses.replace(
        local.results[0],
        curve=((2, 0.9), (4, 0.6)),
        best_round=2,
        best_figures={"c0": {"accuracy": 0.8}, "c1": {"accuracy": 1.0}},
    )
    (row,) = summarize(dataclasses.replace(comparison, rows=(dataclasses.replace(local, results=(chosen,)),)))
    assert (row.mean, row.best_round_mean, row.validation) == (pytest.approx(0.6), pytest.approx(0.9), pytest.approx(0.9))
