"""Asynchronous rounds over processes that die: each contribution counts once, and nodes keep what belongs to their last one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.errors import Unreachable
from freehold.plan import Plan, RoundPolicy, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import committed_contribution, counted

NODES = ["cleveland", "hungary", "switzerland"]
UPDATES, BUFFER, MOST = 5, 2, 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("asynchronous"), NODES, fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def planned(name: str) -> Plan:
    plan = heart_plan("ditto", name=name, rounds=UPDATES, nodes=len(NODES))
    policy = RoundPolicy(mode="asynchronous", buffer=BUFFER, most_staleness=MOST, least_nodes=len(NODES))
    return msgspec.structs.replace(plan, round=policy)


def check(federation: Federation, name: str) -> None:
    """The study of that name, begun before or only now, ends, and the laws hold."""
    plan = planned(name)
    run = runs_of(plan)[0].id
    results = federation.finished(federation.run(plan))
    rows = counted(federation, run)
    assert Counter(row.summed for row in rows) == dict.fromkeys(range(UPDATES), BUFFER), "each update has its buffer full"
    assert {r.round: len(r.heard) for r in results.rounds if r.round < UPDATES} == dict.fromkeys(range(UPDATES), BUFFER)
    assert len({row.sha256 for row in rows}) == len({(row.node, row.summed) for row in rows}) == len(rows), "each counts once"
    assert all(row.round <= row.summed <= row.round + MOST for row in rows)
    last: dict[str, str] = {}
    before: dict[str, int] = {}
    for row in rows:
        assert row.round > before.get(row.node, -1), "a node starts from what it committed"
        last[row.node], before[row.node] = row.sha256, row.summed
    for node in NODES:
        federation.until(lambda node=node: committed_contribution(federation, node, run) == last.get(node))  # type: ignore[misc]


def test_nobody_dies(federation: Federation) -> None:
    check(federation, "undisturbed")


POINTS = ["coordinator.contribution", "coordinator.round"]


@pytest.mark.parametrize(
    "point", [f"{point}.{when}@{nth}" for point in POINTS for when in ("committing", "committed") for nth in (2, 3)]
)
@pytest.mark.parametrize("inline_bytes", [1 << 16, 0])
def test_the_coordinator_dies(federation: Federation, point: str, inline_bytes: int) -> None:
    federation.coordinator.stop()
    federation.settings["inline_bytes"] = inline_bytes
    point, nth = point.split("@")
    federation.start_coordinator(f"{point}=kill@{nth}")
    name = f"{point.replace('.', '-')}-{nth}-{inline_bytes}"
    with contextlib.suppress(Unreachable):
        federation.run(planned(name))
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    check(federation, name)


@pytest.mark.parametrize(
    "point", ["agent.sending", "agent.sent", "node.pending.committed", "node.settle.committing", "node.settle.committed"]
)
def test_a_node_dies(federation: Federation, point: str) -> None:
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"{point}=kill@2")
    name = point.replace(".", "-")
    federation.run(planned(name))
    if point.startswith("agent"):
        assert federation.nodes["hungary"].wait_end() == -9
        federation.start_node("hungary")
    check(federation, name)
    federation.nodes["hungary"].stop()
    federation.start_node("hungary")
