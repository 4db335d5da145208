"""The algorithms' page keeps up with the registry and with what algorithms cost."""

from __future__ import annotations

import re

from torch import nn

from freehold.algorithms import WRAPPERS, costs
from freehold.core import task_from
from tests.architecture.algorithm_docs import BLOCK, PAGE, current, entries

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_generated_blocks_are_current() -> None:
    assert current() == TEXT, "make regold"


def test_every_algorithm_has_a_section_with_its_facts_and_advice_of_when_to_use_it() -> None:
    parts = re.split(r"^#+ `([\w-]+)`$", TEXT, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(sections) == {entry.name for entry in entries()} | {"select"} | set(WRAPPERS)
    for entry in entries():
        assert [found[2] for found in BLOCK.finditer(sections[entry.name])] == [entry.name]
        assert "**Use it**" in sections[entry.name] and "**Not**" in sections[entry.name], entry.name


def test_the_page_says_truly_that_all_of_them_work_with_secure_aggregation() -> None:
    assert "All of them work with secure aggregation" in TEXT
    assert all(costs(entry).secure_aggregation for entry in entries())


def test_the_page_says_truly_which_of_them_do_not_weight_by_examples() -> None:
    task = task_from(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), nn.CrossEntropyLoss(), classes=2)
    uniform = {entry.name for entry in entries() if entry.build(task).weighting == "uniform"}
    assert uniform == {"scaffold-uniform", "fedproto"}
    assert "but for `scaffold-uniform` and `fedproto`" in TEXT


def test_every_paper_is_cited() -> None:
    """`local`, and the intercept, which is nobody's invention, have none."""
    bare = {entry.name for entry in entries() if not re.search(r"arXiv:\d{4}\.\d{5}", entry.citation)}
    assert bare == {"local", "fedavg-intercept"}
