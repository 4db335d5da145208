from __future__ import annotations

import dataclasses

import pytest

from freehold.report import ClientFacts, Comparison, Paired, Row, SeedResult, client_lines, facts_lines, finding, lines, summarize
from freehold.report.lead import MANY_ROWS
from freehold.report.tables import explain, label_shares, percent
from freehold.report.wording import against_baseline, change, clean, headline, signed, value
from tests.unit.report.comparisons import alone_is_best, hospitals, many_rows, phones, stations


def column(table: list[list[str]], name: str) -> list[str]:
    (place,) = [index for index, header in enumerate(table[0]) if header.startswith(name)]
    return [line[place] for line in table[1:]]


@pytest.mark.parametrize("comparison", [hospitals(), hospitals(seeds=1), stations(), phones(45)], ids=lambda each: each.study)
def test_tables_are_rectangular_and_every_header_differs(comparison: Comparison) -> None:
    for table in (lines(comparison), client_lines(comparison), facts_lines(comparison)):
        assert {len(line) for line in table} == {len(table[0])}
        assert len(set(table[0])) == len(table[0])


def test_the_table_of_rows_has_what_the_issue_asks_for() -> None:
    table = lines(hospitals())
    assert column(table, "mean accuracy, %")[0] == "75.9"
    assert column(table, "better than alone")[-1].endswith("○")
    assert column(table, "worst")[1] == "52.3 (Switzerland)"
    assert column(table, "gain, loss")[-1] == "▲ 2 ▼ 0 ○ 2"
    assert column(table, "worse off")[1] == "2 of 4"
    assert column(table, "balanced accuracy") and column(table, "log-loss")
    assert column(table, "published") == ["–", "68.5 ± 2.8", "–", "–", "–"]


def test_columns_without_content_are_left_out() -> None:
    headers = lines(stations())[0]
    assert not [header for header in headers if header.startswith(("published", "newcomers", "at the round"))]


def test_the_lowest_decile_is_shown_where_it_is_not_the_worst_client() -> None:
    assert "lowest decile" not in lines(hospitals())[0]
    assert "lowest decile" in lines(phones(45))[0]


def test_the_figures_at_the_chosen_round_are_shown_if_they_are_known() -> None:
    comparison = hospitals()
    rows = tuple(
        dataclasses.replace(row, results=tuple(dataclasses.replace(each, best_figures=each.figures) for each in row.results))
        for row in comparison.rows
    )
    table = lines(dataclasses.replace(comparison, rows=rows))
    assert column(table, "at the round") == column(table, "mean accuracy")


def test_every_column_is_explained() -> None:
    for comparison in (hospitals(), stations(), phones(45)):
        assert all(explain(header) for header in lines(comparison)[0][1:])


def test_each_hospital_has_its_verdict_beside_each_row_and_what_would_be_served() -> None:
    table = client_lines(hospitals())
    assert [line[0] for line in table[1:]] == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    assert table[3][3] == "52.3 (−22.6) ▼ ⚠ bal. −22.6"
    assert column(table, "node would serve") == ["personal 8×, local 2×"] * 2 + ["personal 7×, local 3×", "personal 8×, local 2×"]


def test_two_rows_of_one_title_keep_their_columns_apart() -> None:
    comparison = hospitals()
    rows = tuple(dataclasses.replace(row, title="Same") for row in comparison.rows)
    table = client_lines(dataclasses.replace(comparison, rows=rows))
    assert len(set(table[0])) == len(table[0])


def test_label_shares_name_the_largest() -> None:
    assert label_shares({"healthy": 0.06, "ill": 0.94}) == "ill: 94 %, healthy: 6 %"
    assert label_shares({str(digit): 0.1 for digit in range(10)}) == "class 0: 10 %, class 1: 10 %, class 2: 10 %, 7 more"
    assert label_shares({}) == "–"


def test_percent_never_rounds_to_nothing_or_all() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]


def test_the_finding_says_who_gains_and_where_the_data_cannot_tell() -> None:
    text = " ".join(finding(hospitals(), summarize(hospitals())))
    assert "2 of 4 hospitals gain with Ditto (Cleveland, Hungary), none loses" in text
    assert "for 2 (Switzerland, VA Long Beach) the data cannot tell" in text
    assert "Losing against training alone: Switzerland ⚠ with FedAvg (balanced accuracy −22.6)." in text
    assert "⚠ Switzerland: 93 % are “ill”, so accuracy says little there. Balanced accuracy is" in text


def test_with_one_seed_the_finding_claims_nothing() -> None:
    text = " ".join(finding(hospitals(seeds=1), summarize(hospitals(seeds=1))))
    assert "The data cannot tell for any of 4 hospitals" in text
    assert "1 seed" in text and "interval" not in text


def test_without_training_alone_the_finding_says_that_nobody_can_say() -> None:
    comparison = dataclasses.replace(hospitals(), rows=hospitals().rows[1:])
    assert "Training alone is not among the rows" in finding(comparison, summarize(comparison))[0]


def test_with_training_alone_only_there_is_nothing_to_find() -> None:
    comparison = dataclasses.replace(hospitals(), rows=hospitals().rows[:1])
    assert finding(comparison, summarize(comparison))[0].startswith("Nothing was compared")


def test_the_leading_row_is_chosen_by_validation_and_never_a_reference() -> None:
    comparison = hospitals()
    lead = headline(comparison, summarize(comparison))
    assert lead is not None and lead.name == "ditto"
    rows = tuple(dataclasses.replace(row, reference=row.name == "ditto") for row in comparison.rows)
    lead = headline(dataclasses.replace(comparison, rows=rows), summarize(comparison))
    assert lead is not None and lead.name == "fedavg-finetuned"


def test_where_training_alone_did_best_the_report_says_so_and_crowns_nobody() -> None:
    comparison = alone_is_best()
    sentences = finding(comparison, summarize(comparison))
    assert sentences[0].startswith("Training alone is best here, by validation data")
    assert "leads here" not in " ".join(sentences)
    assert "brought nothing" not in sentences[0]  # two hospitals gain


def test_joining_brought_nothing_where_training_alone_is_best_and_nobody_gains() -> None:
    comparison = alone_is_best()
    local = comparison.rows[0]
    same = dataclasses.replace(local, name="ditto", title="Ditto", algorithm="ditto")
    comparison = dataclasses.replace(comparison, rows=(local, same))
    assert "joining brought nothing" in finding(comparison, summarize(comparison))[0]


def test_the_row_of_a_plan_leads_whatever_else_did_better() -> None:
    comparison = dataclasses.replace(hospitals(), asked="fedavg")
    sentences = finding(comparison, summarize(comparison))
    assert "with FedAvg" in sentences[0]
    assert sentences[1].startswith("Training alone does at least as well here")
    assert "did best" not in " ".join(sentences)


def test_among_many_rows_the_luckiest_does_not_lead() -> None:
    few, many = many_rows(MANY_ROWS - 1), many_rows(MANY_ROWS)  # and the fixture's own intercept, which is unusual too
    lucky = headline(few, summarize(few))
    assert lucky is not None and lucky.name == f"row{MANY_ROWS - 2}"
    lead = headline(many, summarize(many))
    assert lead is not None and lead.name == "ditto"
    text = " ".join(finding(many, summarize(many)))
    assert "9 algorithms were compared" in text and f"(Row {MANY_ROWS - 1}) is partly the luckiest" in text


def test_a_difference_that_is_not_that_of_the_shown_figures_says_that_it_is_rounded() -> None:
    def told(right: float) -> str:
        return " ".join(finding(two(right), summarize(two(right))))

    def two(right: float) -> Comparison:
        facts = ClientFacts(name="a", examples=900, train=500, validation=100, test=300)
        rows = tuple(
            Row(
                name=name,
                title=name,
                algorithm=name,
                results=tuple(SeedResult(seed=seed, figures={"a": {"accuracy": share}}) for seed in range(3)),
            )
            for name, share in (("local", 0.5004), ("fedavg", right))
        )
        return dataclasses.replace(hospitals(), clients=(facts,), rows=rows, seeds=(0, 1, 2))

    assert "rounded" in told(0.5006) and "rounded" not in told(0.6004)


def test_few_seeds_that_leave_questions_suggest_more() -> None:
    assert "--seeds 10" in " ".join(finding(hospitals(seeds=5), summarize(hospitals(seeds=5))))
    assert "--seeds 10" not in " ".join(finding(hospitals(seeds=10), summarize(hospitals(seeds=10))))


def test_what_would_be_served_is_called_by_the_titles_of_its_candidates() -> None:
    comparison = hospitals()
    candidates = {"local": "local", "shared": "fedavg", "personal": "fedavg-finetuned"}
    last = dataclasses.replace(comparison.rows[-1], hyperparameters=candidates)
    table = client_lines(dataclasses.replace(comparison, rows=(*comparison.rows[:-1], last)))
    assert column(table, "node would serve")[0] == "FedAvg + finetuning 8×, Alone 2×"


def test_where_lower_is_better_the_leading_row_has_the_lowest_value() -> None:
    lead = headline(stations(), summarize(stations()))
    assert lead is not None and lead.name == "ditto"


@pytest.mark.parametrize(
    ("figure", "number", "like", "expected"),
    [
        ("accuracy", 0.0384, None, "+3.8"), ("accuracy", -0.0384, None, "−3.8"), ("accuracy", -0.0001, None, "0.0"),
        ("accuracy", None, None, "–"), ("rmse", 1.5, 29.14, "+1.50"), ("r2", 0.0384, 0.7, "+0.038"),
        ("rmse", 12345.6, 1e4, "+12\u202f346"),
    ],
)  # fmt: skip
def test_changes_carry_their_sign_and_as_many_digits_as_the_figure(
    figure: str, number: float | None, like: float | None, expected: str
) -> None:
    assert change(figure, number, like=like) == expected


def test_values_have_about_three_digits() -> None:
    assert [value("rmse", number) for number in (0.1234, 12.345, 123.45, 1234.5)] == ["0.123", "12.35", "123.5", "1\u202f234"]
    assert [signed(number) for number in (-2.5, 0.0, 10.0)] == ["−2.5", "0", "+10"]


def test_a_difference_without_interval_shows_that_it_cannot_tell() -> None:
    assert against_baseline("accuracy", Paired(difference=0.03, reason="1 seed")) == "+3.0 ○"
    assert against_baseline("accuracy", None) == "–"


def test_names_lose_what_cannot_be_seen_and_what_does_not_fit() -> None:
    assert clean("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc\ufffdd"
    assert clean("x" * 200, 20) == "x" * 19 + "…"
    assert clean("日本語病院", 6) == "日本…"
    assert clean("می\u200cخواهم") == "می\u200cخواهم"
