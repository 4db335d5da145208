"""Files that no honest program writes, and those that a careless one does: refused in words, at once, in little memory."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from freehold.data import Population, from_csv, load_schema
from freehold.data.objectarray import read_object_array
from freehold.errors import LabelError, SchemaError, Unreadable

HEADER = "site,age,note,y\n"
ROWS = [f"{'AB'[i % 2]},{i * 1.5},x,{i % 2}\n" for i in range(20)]


def read(path: Path, text: str, **more: object) -> Population:
    path.write_text(text, encoding="utf-8")
    return from_csv(path, client="site", target="y", drop=("note",), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["\n", "   \n", ",,,\n"])
def test_a_blank_first_line_is_refused(tmp_path: Path, first: str) -> None:
    with pytest.raises(Unreadable, match=r"Line 1 .* empty"):
        read(tmp_path / "a.csv", first + HEADER + "".join(ROWS))


def test_quotes_within_cells_that_pair_up_over_lines_are_refused_with_their_line(tmp_path: Path) -> None:
    bad = HEADER + "".join(ROWS) + 'A,1,5" pipe,1\nB,2,6" pipe,0\n'
    with pytest.raises(Unreadable, match=r"Line 22 .* quotation mark"):
        read(tmp_path / "a.csv", bad)
    fine = HEADER + "".join(ROWS) + 'A,1,5" by 6" pipe,1\nB,2,"6"" pipe,\nlong",0\n'
    assert sum(read(tmp_path / "b.csv", fine).sizes.values()) == 22


def test_a_pipe_is_refused_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(Unreadable, match="pipe or a device"):
        from_csv(tmp_path / "a.csv", client="site", target="y")


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"There is no file .*characters\)"):
        from_csv(tmp_path / ("a" * 5000 + ".csv"), client="site", target="y")


def test_a_schema_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(SchemaError, match="nested too deeply"):
        load_schema(tmp_path / "s.toml")


def test_labels_that_only_the_test_file_has_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "test.csv"
    other.write_text(HEADER + "".join(f"{'AB'[i % 2]},{i + 100.5},x,{('no', 'yes')[i % 2]}\n" for i in range(8)))
    with pytest.raises(LabelError, match=r"'no', 'yes'.*no train example has.*'0', '1'"):
        read(tmp_path / "a.csv", HEADER + "".join(ROWS), test=other)
    other.write_text(HEADER + "A,100.5,x,1\nB,101.5,x,1\n")  # fewer labels than in train are fine
    assert read(tmp_path / "a.csv", HEADER + "".join(ROWS), test=other).classes == ("0", "1")


def test_bytes_that_a_stream_names_again_and_again_are_counted_each_time() -> None:
    size, times = 1 << 20, 60
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    stream = b"\x80\x05(\x8e" + struct.pack("<Q", size) + bytes(size) + b"\x94"
    again = b"cnumpy.core.numeric\n_frombuffer\n(h\x00cnumpy\ndtype\n(\x8c\x02u1\x89\x88tRJ" + struct.pack("<i", size)
    bomb = header.getvalue() + stream + times * (again + b"\x85\x8c\x01CtR") + b"l."
    tracemalloc.start()
    with pytest.raises(Unreadable, match="larger than the file"):
        read_object_array(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * size
