"""The table of the threat model is that of the tests: no row without a test but what nothing stops, no test without a row."""

from __future__ import annotations

from tests.redteam.channels import CHANNELS, PAGE, SHOWN, written
from tests.redteam.collected import collect


def test_every_row_has_its_test_and_the_page_its_rows() -> None:
    collect()
    needed = {name for name, row in CHANNELS.items() if row.becomes != "out of reach"}
    assert set(SHOWN) == needed
    text = PAGE.read_text(encoding="utf-8")
    assert written(text) == text, "python -m tests.redteam"
