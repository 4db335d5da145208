from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.errors import Unreadable
from freehold.report import Comparison, dumps, from_json, to_json
from tests.unit.report.comparisons import hospitals, noised, phones, stations

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "report-json.md"


@pytest.mark.parametrize(
    "comparison", [hospitals(), noised(), hospitals(seeds=1), stations(), phones(45)], ids=lambda each: each.study
)
def test_a_comparison_survives_the_way_to_json_and_back(comparison: Comparison) -> None:
    assert from_json(json.loads(dumps(comparison))) == comparison


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert dumps(hospitals()) == dumps(hospitals())
    assert dumps(from_json(json.loads(dumps(hospitals())))) == dumps(hospitals())


def test_what_is_not_finite_is_null_and_comes_back_as_nan() -> None:
    comparison = hospitals(seeds=3)
    row = comparison.rows[0]
    figures = {"Hungary": {"accuracy": 0.5, "balanced_accuracy": math.nan, "log_loss": math.inf}}
    broken = dataclasses.replace(row.results[0], figures=figures, curve=((0, math.nan),), paired_se={"Hungary": math.nan})
    comparison = dataclasses.replace(comparison, rows=(dataclasses.replace(row, results=(broken,), published=math.nan),))
    text = dumps(comparison)
    assert "NaN" not in text and "Infinity" not in text
    back = from_json(json.loads(text))
    assert math.isnan(back.rows[0].results[0].figures["Hungary"]["log_loss"])
    assert dumps(back) == text


def test_the_fields_that_the_issue_names_are_there() -> None:
    (row, *_) = [row for row in to_json(hospitals())["rows"] if row["name"] == "fedavg"]  # type: ignore[attr-defined]
    assert {"name", "mean", "worst", "per_client", "seeds", "published"} <= set(row)
    assert row["published"] == 0.685
    assert row["per_client"]["Switzerland"]["verdict"] == "loss"
    low, high = row["per_client"]["Switzerland"]["interval"]
    assert low < row["per_client"]["Switzerland"]["difference"] < high < 0


def test_another_format_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unreadable, match="format 2"):
        from_json({**to_json(hospitals()), "format": 2})
    with pytest.raises(Unreadable, match="format None"):
        from_json({})


def test_a_missing_or_wrong_field_is_named() -> None:
    document = to_json(hospitals())
    with pytest.raises(Unreadable, match="metric"):
        from_json({name: value for name, value in document.items() if name != "metric"})
    with pytest.raises(Unreadable, match=r"rows"):
        from_json({**document, "rows": "none"})


def test_every_field_has_its_line_in_the_reference_and_the_reference_no_other() -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert documented == set(paths(to_json(noised())))


FREE = {"hyperparameters", "versions", "labels", "served", "paired_se", "figures", "curve", "noun", "interval"}


def paths(value: object, path: str = "") -> Iterator[str]:
    """`rows[].per_client.*.mean`, ...; what is below a mapping that the user names is not listed."""
    if isinstance(value, dict):
        for name, below in value.items():
            keys = "*" if path.endswith(("per_client", "best_per_client")) else name
            here = f"{path}.{keys}" if path else keys
            if keys != "*":
                yield here
            if name not in FREE:
                yield from paths(below, here)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths(value[0], f"{path}[]")
