"""Made-up tables: read as a node's own are, and nothing of anybody's unless that is asked for."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from typer.testing import CliRunner

from freehold.cli import app
from freehold.data import from_files
from freehold.data.heart import SCHEMA, heart_records
from freehold.data.mocktable import mock_table


def test_a_mock_table_is_read_as_the_task_reads_its_data(tmp_path: Path) -> None:
    mock_table(SCHEMA, 200).write_csv(tmp_path / "mock.csv")
    found = from_files({"mock": tmp_path / "mock.csv"}, schema=SCHEMA)
    assert len(found.target) == 200 and set(found.target) == {0, 1}
    for column in SCHEMA.columns:
        known = found.features[column.name].drop_nulls()  # type: ignore[index]
        if column.kind == "number" and column.low is not None and column.high is not None:
            assert column.low <= known.min() <= known.max() <= column.high


def test_a_seed_says_which_rows_are_made_up() -> None:
    assert mock_table(SCHEMA, 50).equals(mock_table(SCHEMA, 50))
    assert not mock_table(SCHEMA, 50, seed=1).equals(mock_table(SCHEMA, 50))


def test_like_has_the_shares_of_the_data_and_no_record_of_it(tmp_path: Path) -> None:
    records = heart_records()["Switzerland"]
    records.write_csv(tmp_path / "swiss.csv")
    seen = from_files({"swiss": tmp_path / "swiss.csv"}, schema=SCHEMA)
    made = mock_table(SCHEMA, 4000, like=seen)
    made.write_csv(tmp_path / "made.csv")
    again = from_files({"made": tmp_path / "made.csv"}, schema=SCHEMA)
    assert abs(again.target.mean() - seen.target.mean()) < 0.03
    assert isinstance(again.features, pl.DataFrame) and isinstance(seen.features, pl.DataFrame)
    for name in SCHEMA.names:
        gaps = [each[name].null_count() / len(each) for each in (again.features, seen.features)]
        assert abs(gaps[0] - gaps[1]) < 0.05, name
    own = {tuple(row) for row in seen.features.rows()}
    assert not own & {tuple(row) for row in again.features.rows()}


def test_the_command_warns_where_the_table_tells_of_data_and_replaces_no_file(tmp_path: Path) -> None:
    heart_records()["Hungary"].write_csv(tmp_path / "own.csv")
    out = tmp_path / "mock.csv"
    plain = CliRunner().invoke(app, ["data", "mock", "heart", "--rows", "20", "--output", str(out)])
    assert plain.exit_code == 0 and "warning" not in plain.output
    assert len(pl.read_csv(out)) == 20
    assert CliRunner().invoke(app, ["data", "mock", "heart", "--output", str(out)]).exit_code != 0
    arguments = ["data", "mock", "heart", "--output", str(tmp_path / "b.csv"), "--like", str(tmp_path / "own.csv")]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0 and "warning: the table tells of" in told.output
