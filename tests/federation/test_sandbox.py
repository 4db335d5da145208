"""Trainers in real jails: they learn what others learn, and one that cheats is stopped while its study goes on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from torch import equal

from freehold.plan import Plan, RoundPolicy, runs_of
from freehold.sandbox.probe import LEVELS
from freehold.study.trials import plan_for
from freehold.tasks import definition, task_definition
from freehold.wire.admin import Status
from tests.federation.harness import Federation, heart_plan, with_spec
from tests.federation.states import personal_state, server_state

NODES = ["cleveland", "hungary"]
CHEATING = '''
"""The heart task, whose model opens a socket where the time zone is Mallory's; it connects to nothing."""
import dataclasses, os, socket
from freehold.tasks.heart import heart
from freehold.tasks.tables import classifier

def build(*arguments, **named):
    if os.environ.get("TZ") == "Mallory":
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    return classifier(*arguments, **named)

def cheat():
    """The heart task, with a socket."""
    return dataclasses.replace(heart(), name="cheat", build=build)
'''


def federation(folder: Path, fork: Path | None, sandbox: str) -> Federation:
    """Two nodes of this kind that wait for a study."""
    folder.mkdir()
    found = Federation(folder, NODES, fork=fork)
    found.start_coordinator()
    for name in NODES:
        found.start_node(name, settings={"sandbox": sandbox}, wait=False)
    return found


def test_the_result_is_that_of_trainers_without_a_jail(tmp_path: Path, fork: Path) -> None:
    plan = heart_plan("ditto", name="jailed", rounds=2, nodes=2)
    (run,) = runs_of(plan)
    states = []
    for kind in ("required", "off"):
        here = federation(tmp_path / kind[:3], fork, kind)  # a Unix socket's path is short
        try:
            for name in NODES:
                if kind == "off":
                    here.nodes[name].wait_for("sandbox.off")
                else:
                    assert here.nodes[name].wait_for("sandbox.closed")["level"] in LEVELS[1:]
            told = here.finished(here.run(plan))
            (levels,) = {told.sandboxes[name] for name in NODES}
            nodes = here.admin.get("/v1/status", Status).nodes
            assert {node.sandbox for node in nodes} == set(levels) == {level for r in told.rounds for level in r.sandboxes}
            assert levels == ("off",) if kind == "off" else levels[0] in LEVELS[1:]
            states.append([server_state(here, run.id), *(personal_state(here, name, run.id) for name in NODES)])
        finally:
            here.stop()
    inside, outside = states
    assert all(a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a) for a, b in zip(inside, outside, strict=True))


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a task, which every process finds, also one of another user."""
    with tempfile.TemporaryDirectory(prefix="fh-cheat-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "cheating.py").write_text(CHEATING)
        told = folder / "cheating-1.0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: cheating\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text("[freehold.tasks]\ncheat = cheating:cheat\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [name, os.environ.get("PYTHONPATH", "")])))
        monkeypatch.syspath_prepend(name)
        definition._points.cache_clear()
        yield folder
    definition._points.cache_clear()


def cheating_plan() -> Plan:
    plan = plan_for(task_definition("cheat"), "fedavg")
    training = msgspec.structs.replace(plan.training, rounds=2, epochs=1)
    return with_spec(msgspec.structs.replace(plan, name="cheating", training=training, round=RoundPolicy(least_nodes=1)))


@pytest.mark.parametrize("sandbox", ["required", "off"])
def test_a_trainer_that_opens_a_socket_is_stopped_and_its_study_goes_on(
    sandbox: str, tmp_path: Path, plug_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FREEHOLD_FORKSERVER", raising=False)  # what it forks does not know the plug-in
    here = Federation(tmp_path, NODES, fork=None, dataset="cheat")
    here.start_coordinator()
    try:
        here.start_node("cleveland", settings={"sandbox": sandbox}, environment={"TZ": "UTC"}, wait=False)
        here.start_node("hungary", settings={"sandbox": sandbox}, environment={"TZ": "Mallory"}, wait=False)
        for name in NODES:
            here.nodes[name].wait_for("coordinator.connected")
        here.finished(here.run(cheating_plan()))
        here.nodes["cleveland"].wait_for("contribution.sent")
        if sandbox == "required":
            assert here.nodes["hungary"].wait_for("work.refused")["code"] == 306
            assert not here.nodes["hungary"].told("contribution.sent")
        else:  # nothing stops it there: the test would notice
            here.nodes["hungary"].wait_for("contribution.sent")
    finally:
        here.stop()
