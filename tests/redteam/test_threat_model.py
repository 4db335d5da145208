"""The table of the threat model is that of the tests: no row without a test but what nothing stops, no test without a row."""

from __future__ import annotations

import math

import pytest

from freehold.cli.study import privacy_note
from freehold.plan import Privacy, dumps
from freehold.policy import promises
from freehold.wire.admin import Results
from tests.redteam.channels import CHANNELS, PAGE, SHOWN, written
from tests.redteam.collected import collect
from tests.redteam.stage import plan_of
from tests.unit.privacy.test_accounting import analytic_epsilon

ROUNDED = f"{math.ceil(100 * analytic_epsilon(2 / math.sqrt(3), 1e-5)) / 100:g}"
"""ε of three rounds, by a closed form."""


def test_every_row_has_its_test_and_the_page_its_rows() -> None:
    collect()
    needed = {name for name, row in CHANNELS.items() if row.becomes != "out of reach"}
    assert set(SHOWN) == needed
    text = PAGE.read_text(encoding="utf-8")
    assert written(text) == text, "python -m tests.redteam"


def test_the_words_of_reports_are_on_the_page_of_the_data_protection_officer() -> None:
    page = (PAGE.parents[1] / "how-to" / "for-a-data-protection-officer.md").read_text(encoding="utf-8")
    words = {name: value for name, value in vars(promises).items() if name.isupper()}
    assert set(words) == {"NOTHING", "CLIENT", "RECORD", "MEASURES"}
    assert [name for name, value in words.items() if f"| {value} |" not in page] == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (Privacy(), promises.NOTHING),
        (Privacy(unit="record", max_norm=1.0, noise_multiplier=1.0, expected_batch=8.0), promises.RECORD.format(delta="1e-05")),
        (Privacy(unit="client", max_norm=1.0, noise_multiplier=2.0), promises.CLIENT.format(epsilon=ROUNDED, delta="1e-05")),
    ],
    ids=["none", "record", "client"],
)
def test_a_report_says_these_words(told: Privacy, said: str) -> None:
    plan = plan_of(privacy=told if told.unit != "none" else None)
    note = privacy_note(Results(plan=dumps(plan), rounds=[], measures={}, sent_bytes={}))
    assert note.startswith(f"Privacy: {said}")
    assert (promises.MEASURES in note) is (told.unit != "none")
