"""Pages about the federation keep up with it: routes and messages, settings, metrics, events."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest

from freehold.cli import coordinator as coordinator_commands
from freehold.coordinator.metrics import Metrics
from freehold.coordinator.presence import Presence
from freehold.node import __main__ as node_program
from freehold.policy import LIMITS, PERMITS, DataRules
from tests.architecture.imports import ROOT, SOURCE
from tests.architecture.wire_docs import PAGE, render

REFERENCE = ROOT / "docs" / "reference"


def rows(page: str) -> set[str]:
    """What stands in back quotes in the first cell of each table row."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return {
        name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }


def test_the_wire_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "make regold"


@pytest.mark.parametrize(("heading", "keys"), [("coordinator.toml", coordinator_commands.KEYS), ("node.toml", node_program.KEYS)])
def test_every_setting_is_documented_and_every_documented_setting_exists(heading: str, keys: dict[str, type]) -> None:
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE)) == set(keys)


def test_every_rule_of_a_policy_is_documented_with_its_default() -> None:
    text = (REFERENCE / "policy.md").read_text(encoding="utf-8")
    for heading, keys in (("What permits", PERMITS), ("What forbids", LIMITS)):
        part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", part, flags=re.MULTILINE))
        assert set(told) == set(keys)
        for key in keys:
            default = getattr(DataRules(), key)
            if default not in (None, (), ""):
                assert told[key] == f"`{json.dumps(default)}`", key


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    class Nobody(Presence):
        def __init__(self) -> None:
            self._nodes = {}

    text = Metrics(Nobody(), dict, lambda: 0.0).text().decode()
    kinds = dict(re.findall(r"^# TYPE (freehold_\w+) (\w+)", text, flags=re.MULTILINE))
    told = {name for name in kinds if not name.endswith("_created")}
    assert {name.partition("{")[0] for name in rows("metrics.md") if name.startswith("freehold_")} == told


def events() -> Iterator[str]:
    """The names of the events that coordinator, node and wire tell."""
    for package in ("coordinator", "node", "wire"):
        for path in (SOURCE / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Event" and node.args:
                    assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: an event's name is a constant"
                    yield str(node.args[0].value)


def test_every_event_is_documented_and_every_documented_event_exists() -> None:
    assert rows("events.md") == set(events())
