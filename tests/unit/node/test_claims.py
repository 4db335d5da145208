"""What training code says of how much data there is: one number for a table, whichever guard hears it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.errors import LedgerError, ReleaseRefused
from freehold.failpoints import VARIABLE
from freehold.node.claims import Claims
from freehold.plan import Training
from freehold.wire.messages import Measured

POINTS = [f"node.claims.{step}" for step in ("writing", "written", "named")]
TRAINING = Training(rounds=3, batch_size=8, epochs=1)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    found = tmp_path / "heart.csv"
    found.write_text("age\n1\n2\n")
    return found


def claims(table: Path, study: str = "one") -> Claims:
    """Of a guard that was started just now."""
    return Claims(str(table), table.parent / "claims" / f"{study}.json")


def test_a_guard_that_starts_anew_holds_code_to_what_it_said_before(table: Path) -> None:
    first = claims(table)
    assert not first.made
    first.weight("r-0", TRAINING, 40.0)
    first.examples("r-0", "run", {"test": Measured(examples=10, sums={})})
    assert first.made
    second = claims(table)
    with pytest.raises(ReleaseRefused, match="another number"):
        second.weight("r-0", TRAINING, 41.0)
    with pytest.raises(ReleaseRefused, match="another number"):
        second.examples("r-0", "run", {"test": Measured(examples=11, sums={})})
    second.weight("r-0", TRAINING, 40.0)
    second.weight("r-1", TRAINING, 41.0)
    second.examples("r-0", "alone", {"test": Measured(examples=11, sums={})})
    with pytest.raises(ReleaseRefused):
        first.weight("r-1", TRAINING, 42.0)  # it has not heard that itself
    claims(table, "another").weight("r-0", TRAINING, 41.0)


def test_another_table_may_have_another_number(table: Path) -> None:
    claims(table).weight("r-0", TRAINING, 40.0)
    table.write_text("age\n1\n2\n3\n")
    claims(table).weight("r-0", TRAINING, 41.0)
    with pytest.raises(ReleaseRefused):
        claims(table).weight("r-0", TRAINING, 40.0)


def test_what_does_not_change_is_written_once(table: Path) -> None:
    found = claims(table)
    found.weight("r-0", TRAINING, 40.0)
    path = table.parent / "claims" / "one.json"
    before = path.stat().st_ino
    for _ in range(3):
        found.weight("r-0", TRAINING, 40.0)
        claims(table).weight("r-0", TRAINING, 40.0)
    assert path.stat().st_ino == before and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("body", [b"", b"[]", b'{"weight r-0": 1}', b"\xff"])
def test_claims_that_cannot_be_read_are_not_taken_for_none(table: Path, body: bytes) -> None:
    (table.parent / "claims").mkdir()
    (table.parent / "claims" / "one.json").write_bytes(body)
    with pytest.raises(LedgerError, match="cannot be read"):
        claims(table).weight("r-0", TRAINING, 40.0)


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.node.test_claims import TRAINING, claims
found = claims(Path(sys.argv[1]))
found.weight("r-0", TRAINING, 40.0)
found.weight("r-1", TRAINING, 41.0)
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_all_that_was_said_before(table: Path, point: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(table)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), VARIABLE: f"{point}=kill@2"}
    assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == -9, point
    with pytest.raises(ReleaseRefused):
        claims(table).weight("r-0", TRAINING, 41.0)
    if point.endswith("named"):
        with pytest.raises(ReleaseRefused):
            claims(table).weight("r-1", TRAINING, 40.0)
    else:
        claims(table).weight("r-1", TRAINING, 40.0)
