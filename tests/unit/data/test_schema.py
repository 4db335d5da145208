import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.data import Column, Population, Schema, Target, digits, heart, infer_schema, load_schema, parse_schema
from freehold.data.heart import SCHEMA
from freehold.errors import FreeholdError, SchemaError, UnknownKey, Unreadable

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAME = TEXT.filter(bool)
CODES = st.lists(st.one_of(TEXT, st.integers(-9999, 9999), st.floats(-1e6, 1e6)), max_size=3).map(tuple)
BOUNDS = st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2).map(sorted)
NUMBERS = st.builds(
    lambda name, unit, bounds, codes, said: Column(
        name=name, kind="number", unit=unit, low=bounds[0], high=bounds[1], missing=codes, description=said
    ),
    NAME, TEXT, BOUNDS, CODES, TEXT,
)  # fmt: skip
CATEGORIES = st.builds(
    lambda name, words, codes: Column(name=name, kind="category", categories=tuple(words), missing=codes),
    NAME, st.lists(TEXT, min_size=1, max_size=4, unique=True), CODES,
)  # fmt: skip
COLUMNS = st.lists(st.one_of(NUMBERS, CATEGORIES), min_size=1, max_size=4, unique_by=lambda column: column.name)


@settings(max_examples=80, deadline=None)
@given(columns=COLUMNS)
def test_a_schema_survives_its_toml(columns: list[Column]) -> None:
    target = Target(name="\0y", kind="class", classes=("a", "b"))
    schema = Schema(columns=tuple(columns), target=target, client="\0client")
    again = parse_schema(schema.dumps())
    assert again == schema and again.digest() == schema.digest()


def test_the_heart_schema_survives_a_file(tmp_path) -> None:
    (tmp_path / "heart.toml").write_text(SCHEMA.dumps(), encoding="utf-8")
    assert load_schema(tmp_path / "heart.toml") == SCHEMA
    assert load_schema(tmp_path / "heart.toml").digest() == SCHEMA.digest()
    assert Schema(columns=SCHEMA.columns, target=SCHEMA.target).digest() != SCHEMA.digest()


SMALL = '[target]\nname = "y"\nkind = "class"\nclasses = ["a", "b"]\n[[columns]]\nname = "age"\nkind = "number"\n'


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (SMALL + 'untt = "years"', UnknownKey, "'unit'"),
        ("clients = 'x'\n" + SMALL, UnknownKey, "'client'"),
        (SMALL.replace('kind = "class"', 'kind = "clas"'), SchemaError, "'class'"),
        (SMALL.replace('kind = "number"', 'kind = "numbr"'), SchemaError, "'number'"),
        (SMALL + "low = 3\nhigh = 2", SchemaError, "low must not exceed high"),
        (SMALL + "low = nan", SchemaError, "bound"),
        (SMALL + 'low = "3"', SchemaError, "must be a number"),
        (SMALL + "missing = 0", SchemaError, "list of numbers and texts"),
        (SMALL + 'categories = ["x"]', SchemaError, "category"),
        (SMALL.replace('kind = "number"', 'kind = "category"'), SchemaError, "List every category"),
        (SMALL.replace('kind = "number"', 'kind = "flag"\nunit = "m"'), SchemaError, "Only a number"),
        (SMALL.replace('"age"', '"y"'), SchemaError, "twice"),
        (SMALL.replace('["a", "b"]', '["a"]'), SchemaError, "two or more"),
        (SMALL.replace('name = "age"', 'name = ""'), SchemaError, "must be a text"),
        ("format = 2\n" + SMALL, SchemaError, "format 2"),
        ("[target]\n", SchemaError, "columns"),
        ("target = [", SchemaError, "not TOML"),
    ],
)
def test_schemas_that_contradict_themselves_are_refused(text: str, error: type[FreeholdError], said: str) -> None:
    with pytest.raises(error) as caught:
        parse_schema(text)
    assert said in str(caught.value) and caught.value.hint


def test_a_missing_schema_file_is_unreadable(tmp_path) -> None:
    with pytest.raises(Unreadable):
        load_schema(tmp_path / "none.toml")


def test_an_unknown_column_comes_with_the_near_miss() -> None:
    with pytest.raises(SchemaError, match="Did you mean 'chol'"):
        SCHEMA.column("choll")


def test_infer_schema_sees_flags_categories_and_missing_cells() -> None:
    frame = pl.DataFrame({"a": [1.5, None, 2], "b": [0.0, 1, 1], "c": ["10", "9", "9"]})
    population = Population(
        name="t", features=frame, target=np.array([0, 1, 1]), client=np.array(["x"] * 3), schema=None, classes=("no", "yes")
    )
    schema = infer_schema(population)
    assert [column.kind for column in schema.columns] == ["number", "flag", "category"]
    assert schema.column("a").missing == ("",) and schema.column("c").categories == ("9", "10")
    assert schema.target.classes == ("no", "yes")
    assert infer_schema(heart()) is SCHEMA


def test_infer_schema_names_the_columns_of_an_array() -> None:
    assert infer_schema(digits()).names[:2] == ("x0", "x1")
