"""Writes the table of the threat model anew: `python -m tests.redteam`."""

from __future__ import annotations

from tests.redteam.channels import PAGE, written
from tests.redteam.collected import collect

collect()
PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
