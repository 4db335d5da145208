import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.data import csvfile
from freehold.data.csvfile import open_csv, probe

CELL = st.text(st.sampled_from('ab,"\né'), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL, CELL, st.sampled_from(["x", "y"])), min_size=1, max_size=20), chunk=st.integers(1, 40))
def test_rows_and_lines_are_counted_as_the_csv_module_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]], chunk: int
) -> None:
    monkeypatch.setattr(csvfile, "_CHUNK_BYTES", chunk)
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("first", "second", "third"), *rows])
    opened = open_csv(path, probe(path))
    assert opened.rows == len(rows)
    starts = [1]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        starts += [reader.line_num + 1 for _ in reader]
    assert [opened.line(row) for row in range(len(rows))] == starts[1:-1]
    assert opened.scan().collect().rows() == [tuple(cell or None for cell in row) for row in rows]


def test_the_probe_estimates_rows_from_the_first_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1.25,2.5\n" * 200_000)
    assert abs(probe(path).rows - 200_000) < 200
    assert probe(path).cell_bytes == (4, 3)
