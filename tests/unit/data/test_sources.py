from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from freehold.data import Column, Population, Schema, Target, from_csv, from_files, from_frame, from_parquet
from freehold.errors import BadValue, ColumnMissing, DataError, FreeholdError, LabelError, SplitOverlap, Unreadable, UsageError

HEADER = "site,age,dose,sex,y\n"
ROWS = [f"{'AB'[i % 2]},{i * 1.5},{i % 3},{'MF'[i % 2]},{i % 2}\n" for i in range(20)]
GOOD = HEADER + "".join(ROWS)


def read(folder: Path, text: str | bytes, **more: object) -> Population:
    path = folder / "my.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return from_csv(path, **{"client": "site", "target": "y", "categorical": ("sex",), **more})  # type: ignore[arg-type]


def frame(population: Population) -> pl.DataFrame:
    assert isinstance(population.features, pl.DataFrame)
    return population.features


def test_a_csv_becomes_a_population(tmp_path: Path) -> None:
    population = read(tmp_path, GOOD)
    assert dict(population.sizes) == {"A": 10, "B": 10} and population.classes == ("0", "1")
    assert frame(population).schema == {"age": pl.Float32, "dose": pl.Float32, "sex": pl.String}
    assert frame(population)["age"].to_list() == [i * 1.5 for i in range(20)]
    assert population.target.dtype == np.int64 and population.name == "my.csv"
    assert population.schema is not None and population.schema.column("sex").categories == ("F", "M")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD[:-1],
        GOOD + "\n\r\n\n",
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace(",", " , "),
        GOOD.replace("A,", '"A",').replace("site", '"site"'),
    ],
)
def test_the_same_table_in_another_form_is_the_same(tmp_path: Path, text: str | bytes) -> None:
    one, two = read(tmp_path, GOOD), read(tmp_path, text)
    assert (
        frame(one).equals(frame(two))
        and one.client.tolist() == two.client.tolist()
        and one.target.tolist() == two.target.tolist()
    )


def test_columns_can_be_dropped_and_imputed(tmp_path: Path) -> None:
    population = read(tmp_path, GOOD + "A,,1,M,1\nB,NA,1,?,0\nB,3,1,,0\n", drop=("dose",), impute=("age", "sex"))
    assert frame(population).columns == ["age", "sex"]
    assert frame(population)["age"].null_count() == 2
    assert frame(population)["sex"].to_list()[-3:] == ["M", "?", None]
    assert population.schema is not None and [column.missing for column in population.schema.columns] == [("",), ("",)]


def test_all_problems_stand_in_one_error_with_the_flags_that_help(tmp_path: Path) -> None:
    lines = [f"{'AB'[i % 2]},{i},{'' if i == 3 else i},{'MF'[i % 2]},note {i},{i % 2}\n" for i in range(20)]
    with pytest.raises(BadValue) as caught:
        read(tmp_path, "site,x,age,sex,notes,y\n" + "".join(lines), categorical=())
    assert caught.value.message == (
        "3 of 4 feature columns of my.csv cannot be used as they are:\n"
        "  age: missing in 1 of 20 cells, first in line 5\n"
        "  sex: text in 20 of 20 cells, first 'M' in line 2; 2 distinct values\n"
        "  notes: text in 20 of 20 cells, first 'note 0' in line 2; 20 distinct values"
    )
    assert caught.value.hint.strip() == (
        "Add --categorical sex --impute age --drop notes (in Python: categorical=['sex'], impute=['age'], drop=['notes'])."
    )


def test_the_flags_of_the_error_make_the_file_usable(tmp_path: Path) -> None:
    lines = [f"{'AB'[i % 2]},{'' if i == 3 else i},{'MF'[i % 2] if i else ''},note {i},{i % 2}\n" for i in range(20)]
    text = "site,age,sex,notes,y\n" + "".join(lines)
    with pytest.raises(BadValue, match="--categorical sex --impute age,sex --drop notes"):
        read(tmp_path, text, categorical=())
    assert len(read(tmp_path, text, categorical=("sex",), impute=("age", "sex"), drop=("notes",)).target) == 20


def test_cells_that_are_missing_are_no_distinct_value(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="3 distinct values"):
        read(
            tmp_path,
            "site,a,y\n" + "".join(f"s,{word},{n % 2}\n" for n, word in enumerate(["x", "y", "z", ""] * 5)),
            categorical=(),
        )


def test_a_table_with_decimal_commas_only_is_not_told_to_drop_everything(tmp_path: Path) -> None:
    text = "site;a;b;y\n" + "".join(f"s;{n},5;{n},25;{n % 2}\n" for n in range(20))
    with pytest.raises(BadValue) as caught:
        read(tmp_path, text, categorical=())
    assert "decimal points" in caught.value.hint and "drop" not in caught.value.hint


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_category_column_of_a_frame_is_a_category(library: str) -> None:
    words = ["low", "high", "none", None] * 10
    columns = {"site": ["s", "t"] * 20, "a": words, "y": [0, 1] * 20}
    if library == "pandas":
        frame = pd.DataFrame(columns).astype({"a": "category"})
        numbers = pd.DataFrame({**columns, "a": [1, 2, 3, 4] * 10}).astype({"a": "category"})
        found = from_frame(numbers, client="site", target="y")
        assert found.schema is not None and found.schema.columns[0].categories == ("1", "2", "3", "4")
        read_in = from_frame(frame, client="site", target="y", impute=["a"])
    else:
        read_in = from_frame(pl.DataFrame(columns).cast({"a": pl.Categorical}), client="site", target="y", impute=["a"])
    assert read_in.schema is not None
    assert read_in.schema.columns[0].categories == ("high", "low", "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "A,inf,1,M,1\n", ["age: an infinite number in 1 of 21 cells, first in line 22", "mend age"]),
        (GOOD + "A,1e400,1,M,1\n", ["age: an infinite number"]),
        (GOOD + "A,abc,1,M,1\n", ["age: text in 1 of 21 cells, first 'abc' in line 22", "mend age"]),
        (GOOD.replace(",", ";").replace(".", ","), ["age: a number with a decimal comma", "Columns age have decimal commas"]),
        (GOOD + 'A,1,1,"M\nM",1\nA,,1,M,1\n', ["age: missing in 1 of 22 cells, first in line 24"]),
        (GOOD + "A,1,1,,1\n", ["sex: missing in 1 of 21 cells", "--impute sex"]),
    ],
)
def test_bad_cells_are_refused_with_their_place(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(BadValue) as caught:
        read(tmp_path, text)
    assert all(each in str(caught.value) for each in said)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", Unreadable, "is empty"),
        (" \n", Unreadable, "is empty"),
        (HEADER, Unreadable, "a header and no rows"),
        ("site,a,a,y\nA,1,2,0\n", Unreadable, "the column 'a' twice"),
        ("site,a,,y\nA,1,2,0\n", Unreadable, "Column 3 of"),
        ("1,2,3\n4,5,6\n", Unreadable, "no header"),
        ("site\nA\n", Unreadable, "one column"),
        (GOOD + "A,1,2,M\nB,1,2,M,1,5\n", Unreadable, "2 lines do not: line 22 has 4, line 23 has 6"),
        (HEADER + ROWS[0] + "\n" + ROWS[1], Unreadable, "1 line does not: line 3 has 1 or none"),
        (GOOD.encode() + "A,1,2,é,1\n".encode("latin-1"), Unreadable, "is not UTF-8: line 22"),
        (GOOD.encode("utf-16"), Unreadable, "is UTF-16"),
        (GOOD + 'A,1,2,"M,1\n', Unreadable, "ends inside quotes"),
        (GOOD.replace("\n", "\r"), Unreadable, "cells"),
        (GOOD.encode() + b"A,1,2,\0,1\n", Unreadable, "zero byte"),
        (b"PAR1 and so on", Unreadable, "from_parquet"),
        (b"PK\x03\x04 and so on", Unreadable, "Unpack it"),
        (GOOD + ",1,2,M,1\n", BadValue, "The client column 'site' is missing in 1 of 21 rows of my.csv, first in line 22"),
        (GOOD + "A,1,2,M,\n", BadValue, "The target column 'y' is missing in 1 of 21 rows of my.csv, first in line 22"),
        (GOOD.replace(",1\n", ",0\n"), LabelError, "is '0' in all 20 rows"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path: Path, text: str | bytes, error: type[FreeholdError], said: str) -> None:
    with pytest.raises(error) as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and caught.value.hint


def test_a_folder_and_a_missing_file_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"is a folder.*from_files"):
        from_csv(tmp_path, client="site", target="y")
    (tmp_path / "mine.csv").write_text(GOOD)
    with pytest.raises(Unreadable, match=r"In that folder: mine\.csv"):
        from_csv(tmp_path / "my.csv", client="site", target="y")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"client": "sites"}, "no client column 'sites'. Did you mean 'site'? Columns: site, age, dose, sex, y."),
        ({"target": "outcome"}, "no target column 'outcome'. Known: age, dose, sex, site, y."),
        ({"drop": ("does",)}, "no column to drop 'does'. Did you mean 'dose'?"),
        ({"impute": ("agee",)}, "Did you mean 'age'?"),
        ({"split": "part"}, "no split column 'part'"),
        ({"drop": ("age", "dose"), "categorical": (), "group": "sex"}, "no feature columns left"),
    ],
)
def test_unknown_columns_come_with_the_near_miss(tmp_path: Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(ColumnMissing) as caught:
        read(tmp_path, GOOD, **more)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [{"client": "y"}, {"client": None}, {"drop": "age"}, {"drop": ("sex",)}, {"impute": ("site",)}, {"problem": "ranking"}],
)
def test_calls_that_contradict_themselves_are_refused(tmp_path: Path, more: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, GOOD, **more)


def test_fractions_and_many_whole_numbers_are_a_quantity(tmp_path: Path) -> None:
    population = read(tmp_path, GOOD.replace(",1\n", ",1.5\n"))
    assert population.classes == () and population.target.dtype == np.float64
    many = HEADER + "".join(f"A,1,{i},M,{i}\n" for i in range(30))
    assert read(tmp_path, many).classes == ()
    with pytest.raises(LabelError, match="30 classes in 30 rows"):
        read(tmp_path, many, problem="classification")


def test_labels_are_mapped_and_noted(tmp_path: Path) -> None:
    text = GOOD.replace(",0\n", ",no\n").replace(",1\n", ",yes\n")
    population = read(tmp_path, text)
    assert population.classes == ("no", "yes") and population.target.tolist() == [0, 1] * 10
    assert population.notes == ("Target y: labels 'no', 'yes' are classes 0, 1.",)
    counted = read(tmp_path, GOOD.replace(",1\n", ",2\n").replace(",0\n", ",1\n"))
    assert counted.classes == ("1", "2") and counted.target.tolist() == [0, 1] * 10


SCHEMA = Schema(
    columns=(
        Column(name="age", kind="number", missing=(-9, "unknown")),
        Column(name="sex", kind="category", categories=("F", "M", "X")),
        Column(name="dose", kind="number"),
    ),
    target=Target(name="y", kind="class", classes=("0", "1")),
    client="site",
)


def test_a_schema_names_the_columns_and_the_missing_codes(tmp_path: Path) -> None:
    text = (HEADER + "A,-9,1,M,1\nB,unknown,1,M,0\nA,,1,F,0\nA,5,1,F,1\n").replace("\n", ",7\n").replace("y,7", "y,other")
    population = read(tmp_path, text, client=None, target=None, categorical=(), schema=SCHEMA)
    assert frame(population).columns == ["age", "sex", "dose"] and frame(population)["age"].to_list() == [None, None, None, 5]
    assert population.coded == {"A": {"age": {"-9": 1}}, "B": {"age": {"unknown": 1}}}
    assert population.notes == ("Columns that the schema does not list are not read: other.",)
    assert population.schema is SCHEMA


def test_a_schema_refuses_other_labels_and_missing_cells(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"has the label '2' in 1 of 21 rows; expected '0', '1'"):
        read(tmp_path, GOOD + "A,1,1,M,2\n", categorical=(), schema=SCHEMA)
    with pytest.raises(BadValue, match=r"dose: missing in 1 of 21 cells, first in line 22\s+The schema declares"):
        read(tmp_path, GOOD + "A,1,,M,1\n", categorical=(), schema=SCHEMA)
    with pytest.raises(ColumnMissing, match="no feature column of the schema 'dose'"):
        read(tmp_path, GOOD.replace("dose", "dosage"), categorical=(), schema=SCHEMA)


def test_a_schema_lets_one_class_pass(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace(",1\n", ",0\n"), categorical=(), schema=SCHEMA).classes == ("0", "1")


def test_large_whole_numbers_keep_their_digits(tmp_path: Path) -> None:
    text = HEADER + "".join(f"A,{1_700_000_000 + i},1,M,{i % 2}\n" for i in range(6))
    assert frame(read(tmp_path, text))["age"].to_list() == [1_700_000_000 + i for i in range(6)]


def test_own_splits_are_honored(tmp_path: Path) -> None:
    words = ["train", "Test", "val", "train"]
    text = GOOD.replace("y\n", "y,part\n", 1).replace("0\n", "0,train\n").replace("1\n", "1,train\n")
    text += "".join(f"A,{40 + i},1,M,{i % 2},{word}\n" for i, word in enumerate(words))
    population = read(tmp_path, text, split="part")
    assert population.split is not None and population.split.tolist()[-4:] == ["train", "test", "validation", "train"]
    with pytest.raises(BadValue, match="holds 'later' in line 26"):
        read(tmp_path, text + "A,1,1,M,1,later\n", split="part")


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("y,site,age,sex,dose\n0,A,99,M,1\n1,B,98,F,1\n")
    population = read(tmp_path, GOOD, test=tmp_path / "test.csv")
    assert population.split is not None and population.split.tolist() == ["train"] * 20 + ["test"] * 2
    assert frame(population)["age"].to_list()[-2:] == [99, 98]


def test_a_test_file_that_overlaps_train_is_refused_with_the_lines(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(HEADER + ROWS[3] + "A,99,1,M,0\n" + ROWS[5])
    with pytest.raises(SplitOverlap) as caught:
        read(tmp_path, GOOD, test=tmp_path / "test.csv")
    pairs = "line 5 of my.csv and line 2 of test.csv, line 7 of my.csv and line 4 of test.csv"
    assert caught.value.message == f"2 examples of my.csv stand in two splits: {pairs}."


def test_a_split_column_that_overlaps_is_refused(tmp_path: Path) -> None:
    text = "site,a,y,part\nA,1,0,train\nA,2,1,train\nA,1,0,test\nA,3,1,test\n"
    with pytest.raises(SplitOverlap, match=r"1 example of my\.csv stands in two splits: line 2 and line 4"):
        read(tmp_path, text, categorical=(), split="part")


def test_groups_and_times_are_no_features(tmp_path: Path) -> None:
    text = "site,a,patient,day,y\n" + "".join(f"A,{i},p{i // 2},2024-03-{i + 1:02d},{i % 2}\n" for i in range(9))
    population = read(tmp_path, text, categorical=(), group="patient", time="day")
    assert frame(population).columns == ["a"]
    assert population.group is not None and population.group.tolist()[:3] == ["p0", "p0", "p1"]
    assert population.time is not None and np.diff(population.time).tolist() == [86_400_000_000] * 8
    with pytest.raises(BadValue, match=r"time column 'day' holds no time in 1 of 10 rows of my\.csv, first in line 11"):
        read(tmp_path, text + "A,1,p,soon,1\n", categorical=(), group="patient", time="day")


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    pl.read_csv(tmp_path / "my.csv").with_columns(pl.col("dose") > 0).write_parquet(tmp_path / "my.parquet")
    population = from_parquet(tmp_path / "my.parquet", client="site", target="y", categorical=("sex",))
    assert frame(population)["age"].to_list() == [i * 1.5 for i in range(20)]
    assert population.schema is not None and population.schema.column("dose").kind == "flag"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(Unreadable, match="cannot be read as Parquet"):
        from_parquet(tmp_path / "bad.parquet", client="site", target="y")


def test_dates_and_lists_are_no_numbers(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"site": ["A"] * 4, "day": pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 1, 4), eager=True), "y": [0, 1] * 2}
    )
    with pytest.raises(BadValue, match="day: holds dates, not numbers"):
        from_frame(table.with_columns(a=pl.lit(1.0)), client="site", target="y")
    with pytest.raises(BadValue, match="day: holds nested, not numbers"):
        from_frame(table.with_columns(day=pl.concat_list("y", "y"), a=1.0), client="site", target="y")


def test_one_file_per_client(tmp_path: Path) -> None:
    for name, start in (("site 10", 0), ("site 9", 50)):
        lines = "".join(f"{start + i},{i % 2}\n" for i in range(6))
        (tmp_path / f"{name}.csv").write_text("a,y\n" + lines)
    population = from_files(tmp_path, target="y")
    assert dict(population.sizes) == {"site 9": 6, "site 10": 6}
    named = from_files({"north": tmp_path / "site 9.csv", "south": tmp_path / "site 10.csv"}, target="y")
    assert named.clients == ("north", "south") and frame(named)["a"].to_list()[:2] == [50, 51]
    (tmp_path / "site 9.csv").write_text("a,y\n1,0\nx,1\n" + "1,1\n" * 4)
    with pytest.raises(BadValue, match=r"first 'x' in line 3 of site 9\.csv"):
        from_files(tmp_path, target="y")
    (tmp_path / "site 9.csv").write_text("b,y\n1,0\n")
    with pytest.raises(ColumnMissing, match=r"has no column 'b', but site 9.csv has|has no column 'a', but site"):
        from_files(tmp_path, target="y")


def test_files_of_clients_may_be_parquet(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pl.DataFrame({"x": [1.0, 2, 3], "y": [0, 1, 0]}).write_parquet(tmp_path / f"{name}.parquet")
    assert from_files(tmp_path, target="y").clients == ("a", "b")


def test_folders_without_files_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"holds no \.csv"):
        from_files(tmp_path, target="y")
    with pytest.raises(UsageError):
        from_files({}, target="y")


def test_pandas_and_polars_frames_give_the_same(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "site": pd.Categorical(["A", "B"] * 10),
            "age": [None, *range(1, 20)],
            "count": pd.array([None, *range(1, 20)], dtype="Int64"),
            "ok": [True, False] * 10,
            "sex": ["M", None] * 10,
            "when": pd.date_range("2024-01-01", periods=20),
            "y": ["no", "yes"] * 10,
        }
    )
    how = {"client": "site", "target": "y", "categorical": ("sex",), "impute": ("age", "count", "sex"), "time": "when"}
    one = from_frame(table, **how)
    same = pl.DataFrame({**{name: table[name].tolist() for name in ("age", "ok", "y")}, "site": ["A", "B"] * 10})
    same = same.with_columns(
        pl.Series("sex", ["M", None] * 10), pl.Series("count", [None, *range(1, 20)]), pl.Series("when", table["when"].to_numpy())
    )
    two = from_frame(same.select(table.columns.to_list()), **how)
    assert frame(one).equals(frame(two)) and one.target.tolist() == two.target.tolist()
    assert one.time is not None and two.time is not None and one.time.tolist() == two.time.tolist()
    assert frame(one)["count"].null_count() == 1 and frame(one)["sex"].null_count() == 10


def test_frames_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="list is no data frame"):
        from_frame([1, 2], client="a", target="b")  # type: ignore[arg-type]
    twice = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])
    with pytest.raises(DataError, match="the column 'a' twice"):
        from_frame(twice, client="a", target="b")
