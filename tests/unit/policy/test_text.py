"""Malformed policies: file, line, key and the near miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import PolicyError
from freehold.policy import DataRules, Policy, load_policy, new_policy, parse_policy, sample_policy

BAD = {
    "unknown key": ('[data.heart]\n\nrelese = "noised"\n', "it.toml:3: nobody reads 'data.heart.relese'", "release"),
    "unknown word": ('[data.heart]\nrelease = "nosed"\n', "it.toml:2: data.heart.release is 'nosed'", "noised"),
    "unknown table": ("[date.heart]\n", "it.toml:1: nobody reads 'date'", "data"),
    "no table": ('release = "noised"\n', "it.toml:1: nobody reads 'release'", "[data.NAME]"),
    "table above": ('[data]\nrelease = "noised"\n', "it.toml:2: data.release", "[data.heart]"),
    "wrong type": ("[data.a]\n[data.heart]\ntasks = 'x'\n", "it.toml:3: data.heart.tasks should be a list", "tasks = []"),
    "wrong item": ("[data.heart]\ntasks = [1]\n", "it.toml:2: data.heart.tasks[0] should be text", ""),
    "same key elsewhere": ("[data.a]\ndelta = 0.1\n[data.b]\ndelta = 3\n", "it.toml:4: data.b: delta is 3", "1e-5"),
    "nan": ("[data.heart]\nepsilon_total = nan\n", "it.toml:2: data.heart.epsilon_total is nan", ""),
    "below 0": ("[data.heart]\nepsilon_total = -1.0\n", "it.toml:2: data.heart: epsilon_total", "Raise"),
    "kept for no time": ("[data.heart]\nkeep_days = 0.5\n", "it.toml:2: data.heart: keep_days", "Raise"),
    "hours": ("[data.heart]\nhours = 'late'\n", "it.toml:2: data.heart: hours: 'late'", "22:00-06:00"),
    "key": ("[data.heart]\nstudy_keys = ['ab']\n", "it.toml:2: data.heart: study_keys", ".pub"),
    "digest": ("[data.heart]\ncode = ['sha256:1']\n", "it.toml:2: data.heart: code", "64 digits"),
    "no least sum": ("[data.heart]\nrelease = 'secure-sum'\n", "it.toml:2: data.heart: release", "least_sum"),
    "not built": ("[data.heart]\nattested_coordinator = true\n", "it.toml:2: data.heart: attested_coordinator", "Leave"),
    "quoted name": ('[data."my heart"]\nrelese = 1\n', "nobody reads 'data.my heart.relese'", "release"),
    "not TOML": ("[data.heart\n", "it.toml is not TOML", "brackets"),
    "twice": ("[data.heart]\nunit='none'\nunit='none'\n", "it.toml is not TOML", ""),
    "not text": (b"\xff\xfe", "it.toml is not TOML", ""),
    "large": ("#" * (1 << 21), "more than", "another file"),
    "deep": ("a=" + "[" * 100000, "it.toml", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_policy_is_refused_with_its_place(name: str) -> None:
    text, message, hint = BAD[name]
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "it.toml")  # type: ignore[arg-type]
    assert message in caught.value.message and hint in caught.value.hint


def test_no_file_is_no_rule_and_a_folder_is_an_error(tmp_path: Path) -> None:
    assert load_policy(tmp_path / "none.toml") == Policy() == parse_policy("")
    with pytest.raises(PolicyError):
        load_policy(tmp_path)


def test_the_defaults_allow_nothing() -> None:
    assert parse_policy("[data.heart]").data == {"heart": DataRules()}
    assert DataRules().share_benefit == "never" and DataRules().release is None and DataRules().tasks == ()


@pytest.mark.parametrize("data", ["heart", "my heart", "a.b"])
def test_policies_to_begin_with_are_read_and_their_comments_too(data: str) -> None:
    assert parse_policy(sample_policy(data)).data[data].tasks == (data,)
    text = new_policy(data)
    assert parse_policy(text).data[data].share_benefit == "never"
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in text.splitlines()]
    whole = "\n".join(lines).replace('["sha256:..."]', "[]").replace('["MCowBQYDK2VwAyEA..."]', "[]")
    said = parse_policy(whole).data[data]
    assert said.columns == ("age", "sex") and said.hours and said.memory == 4_000_000_000
