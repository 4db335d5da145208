"""The report of a federation's study, from the sums that nodes told."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest

from freehold.errors import UsageError
from freehold.plan import Contribution, Plan, dumps, runs_of
from freehold.report import summarize
from freehold.study.federated import comparison_of, federated_plan
from freehold.study.traveling import said
from freehold.wire.admin import Results, RoundInfo
from freehold.wire.messages import DIFFERING, Declined, Measured, Measures, decode, encode

NODES = ("alice", "bob")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return federated_plan("heart", "ditto", companions=["fedavg"], rounds=2, repeats=3)


def split(correct: int, *, ill: int = 10) -> Measured:
    sums = {"count": 20.0, "correct": float(correct), "loss": 8.0, "count_by_class/0": 20.0 - ill, "correct_by_class/0": 8.0}
    if ill >= 5:  # of fewer, nothing is told
        sums |= {"count_by_class/1": float(ill), "correct_by_class/1": correct - 8.0}
    return Measured(examples=20, sums=sums)


def results(plan: Plan, *, ill: int = 10, silent: str = "") -> Results:
    measures: dict[str, dict[str, str]] = {}
    for run in runs_of(plan):
        for node in NODES:
            own = split(16 if run.algorithm.name == "ditto" else 14, ill=ill)
            told = Measures(
                run=run.id,
                round=2,
                splits={"validation": own, "test": own},
                alone={"test": split(15, ill=ill)},
                served="personal" if run.algorithm.name == "fedavg" else "",
            )
            declined = Declined(run=run.id, round=2, code=305, message="no")
            measures.setdefault(run.id, {})[node] = encode(declined if node == silent else told).decode()
    rounds = [RoundInfo(run=r.id, round=i, heard=list(NODES), seconds=0.5, bytes=200) for r in runs_of(plan) for i in range(2)]
    return Results(plan=dumps(plan), rounds=rounds, measures=measures, sent_bytes={})


def test_alone_companions_algorithm_and_choice_are_the_rows(plan: Plan) -> None:
    comparison = comparison_of(results(plan), command="freehold demo")
    assert [row.name for row in comparison.rows] == ["local", "fedavg", "ditto", "select"]
    means = {summary.name: summary.mean for summary in summarize(comparison)}
    assert means == pytest.approx({"local": 15 / 20, "fedavg": 14 / 20, "ditto": 16 / 20, "select": 16 / 20})
    assert comparison.seeds == (0, 1, 2)
    assert comparison.asked == "ditto"
    assert [dict(row.results[0].curve) for row in comparison.rows[1:3]] == [{2: 14 / 20}, {2: 16 / 20}]


def test_balanced_accuracy_and_bytes_are_those_of_the_sums(plan: Plan) -> None:
    comparison = comparison_of(results(plan), command="")
    ditto = comparison.row("ditto")
    assert ditto is not None
    assert ditto.results[0].figures["alice"] == pytest.approx({"accuracy": 0.8, "balanced_accuracy": 0.8, "log_loss": 0.4})
    assert ditto.sent_bytes == 200  # two rounds, half of the bytes each
    assert ditto.seconds == pytest.approx(3.0)


def test_a_class_of_few_is_not_guessed(plan: Plan) -> None:
    comparison = comparison_of(results(plan, ill=3), command="")
    ditto = comparison.row("ditto")
    assert ditto is not None
    assert math.isnan(ditto.results[0].figures["alice"]["balanced_accuracy"])
    assert comparison.clients[0].labels == {}


def test_a_node_that_declined_to_measure_is_left_out(plan: Plan) -> None:
    comparison = comparison_of(results(plan, silent="bob"), command="")
    assert [client.name for client in comparison.clients] == ["alice"]


def test_before_anything_is_measured_there_is_no_report(plan: Plan) -> None:
    with pytest.raises(UsageError, match="measured"):
        comparison_of(Results(plan=dumps(plan), rounds=[], measures={}, sent_bytes={}), command="")


def test_the_plan_that_is_made_waits_for_its_nodes() -> None:
    made = federated_plan("heart", "ditto", companions=["ditto", "fedavg"], name="mine", least_nodes=3)
    assert (made.name, made.round.least_nodes, [c.name for c in made.companions]) == ("mine", 3, ["fedavg"])
    assert json.dumps(made.training.rounds) == "20"


def test_the_plan_that_is_made_says_how_contributions_travel() -> None:
    made = federated_plan("heart", "ditto+bfloat16", companions=["ditto", "fedavg"], compression="zstd")
    assert (made.name, made.algorithm.name, [c.name for c in made.companions]) == ("heart-ditto-bfloat16", "ditto", ["fedavg"])
    assert (made.contribution.dtype, made.contribution.compression) == ("bfloat16", "zstd")


@pytest.mark.parametrize(
    ("contribution", "sentences"),
    [
        (Contribution(), ()),
        (Contribution(dtype="bfloat16"), ("Contributions were rounded to bfloat16, as the plan says.",)),
        (Contribution(compression="zstd"), ("Contributions were compressed with zstd, as the plan says.",)),
        (
            Contribution(dtype="float32", compression="zstd"),
            ("Contributions were rounded to float32 and compressed with zstd, as the plan says.",),
        ),
    ],
)
def test_a_report_says_how_contributions_traveled(contribution: Contribution, sentences: tuple[str, ...]) -> None:
    assert said(contribution) == sentences


@pytest.mark.parametrize("differing", [None, 1, 3, 9])
def test_how_sure_a_difference_is_follows_from_the_examples_that_the_models_do_not_share(
    plan: Plan, differing: int | None
) -> None:
    def with_differing(body: str) -> str:
        told = decode(body.encode(), Measures)
        own = told.splits["test"]
        sums = own.sums if differing is None else {**own.sums, DIFFERING: float(differing)}
        splits = {**told.splits, "test": Measured(examples=own.examples, sums=sums)}
        return encode(msgspec.structs.replace(told, splits=splits)).decode()

    found = results(plan)
    told = {run: {node: with_differing(body) for node, body in by_node.items()} for run, by_node in found.measures.items()}
    comparison = comparison_of(msgspec.structs.replace(found, measures=told), command="")
    ditto, chosen = comparison.row("ditto"), comparison.row("select")
    assert ditto is not None and chosen is not None
    errors = ditto.results[0].paired_se
    assert dict(chosen.results[0].paired_se) == dict(errors), "every node serves the personal one"
    if differing is None:
        assert errors == {}
        return
    # Ditto has 16 of 20 right, alone 15: one more than it loses, of those that differ.
    difference = np.array([1.0] * ((differing + 1) // 2) + [-1.0] * (differing // 2) + [0.0] * (20 - differing))
    assert errors["alice"] == pytest.approx(difference.std(ddof=1) / math.sqrt(20))
