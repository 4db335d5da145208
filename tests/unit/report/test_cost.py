"""What ε costs, on the terminal and on the page: planned ε never rounded down, accuracy beside that without noise and alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from freehold.report import NoisedRow, PrivacyCost, summarize
from freehold.report.cost import cost_lines, heading, rounded_up
from freehold.report.learning import cost_curve
from freehold.report.page import page
from tests.unit.report.comparisons import hospitals, noised
from tests.unit.report.test_browser import rendered


@given(st.floats(1e-6, 1e6))
def test_an_epsilon_is_shown_to_three_digits_and_never_below(epsilon: float) -> None:
    shown = float(rounded_up(epsilon))
    assert epsilon <= shown <= 1.011 * epsilon
    assert rounded_up(math.inf) == "no promise"


def test_the_table_has_a_line_for_each_epsilon_and_the_one_without() -> None:
    header, *body = cost_lines(noised())
    assert header[:4] == ["", "ε (planned)", "ε by Rényi", "noise multiplier"] and len(header) == 7
    assert [line[1] for line in body] == ["0.997", "7.97", "no promise"]
    assert {len(line) for line in body} == {7} and body[-1][0] == "FedAvg, no noise"
    means = {each.name: each.mean for each in summarize(noised())}
    loss = 100 * ((means["fedavg-finetuned"] or 0) - (means["fedavg"] or 0))
    assert float(body[0][-1].replace("−", "-")) == round(loss, 1)
    assert "each training record" in heading(noised()) and "1e-05" in heading(noised())
    assert cost_lines(hospitals()) == [] and heading(hospitals()) == "" and cost_curve(hospitals()) is None


def test_a_plan_with_noise_of_its_own_has_one_line_and_no_curve() -> None:
    point = NoisedRow(row="fedavg", epsilon=math.inf, epsilon_by_rdp=math.inf, noise_multiplier=1e-9)
    one = PrivacyCost(unit="client", delta=1e-5, max_norm=1.0, clear="", points=(point,))
    found = replace(hospitals(seeds=1), privacy=one)
    header, line = cost_lines(found)
    assert len(header) == len(line) == 6 and line[1] == "no promise" and "all of a hospital" in heading(found)
    assert cost_curve(found) is None and "What ε costs" in page(found)


def test_a_browser_shows_the_curve_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    dom, console = rendered(noised(), tmp_path)
    assert not console
    assert "What ε costs: noise for each training record" in dom and "ε, smaller promises more" in dom
    assert "FedAvg: without noise" in dom and "0.997" in dom
    ids = [part.partition('"')[0] for part in dom.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), "two curves on one page share no id"
