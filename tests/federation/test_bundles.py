"""Code that comes with a plan: from the researcher's file to trainers in jails, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold.coordinator.specification import specified
from freehold.errors import BundleUnfit, FreeholdError, PlanWaits, PolicyRefused, StudyRefused, TrainerFailed
from freehold.plan import AlgorithmRef, Plan, Privacy, RoundPolicy, TaskRef, Training, dumps, runs_of
from freehold.plan.bundle import digest_of, pack
from freehold.sandbox.probe import probe
from freehold.wire.admin import StudyRequest, StudyStarted
from tests.federation.harness import Federation
from tests.federation.states import server_state

NODES = ["cleveland", "hungary"]
ROUNDS = 2
TASK = """
import dataclasses
from pathlib import Path
from freehold.tasks.heart import heart
from pack.model import WIDTH, build

def outside(name):
    try:
        Path({folder!r}, name).write_text("x")
    except OSError:
        pass

outside("imported")

def task():
    return dataclasses.replace(heart(), title="My own", build=build)
"""
MODEL = """
from freehold.tasks.tables import classifier
WIDTH = {width}

def build(prepared, seed):
    {first}
    return classifier(prepared, seed, hidden=(WIDTH,))
"""

pytestmark = pytest.mark.skipif(probe(None).level not in ("strict", "standard"), reason="code that comes along needs namespaces")


class Bundled(Federation):
    """A federation whose nodes run trainers in jails."""

    folder: Path

    def bundle(self, *, width: int = 5, first: str = "pass") -> bytes:
        """A task of one's own, on the heart data: it leaves a mark where it is imported, if it can."""
        marks = self.folder / "marks"
        marks.mkdir(exist_ok=True)
        marks.chmod(0o777)
        model = MODEL.format(width=width, first=first)
        return pack({"task.py": TASK.format(folder=str(marks)), "pack/__init__.py": "", "pack/model.py": model})

    def plan(self, name: str, bundle: bytes, **changed: object) -> Plan:
        """Noised by the guard."""
        plan = Plan(
            name=name,
            task=TaskRef(name="heart", bundle=digest_of(bundle)),
            algorithm=AlgorithmRef(name="fedavg", hyperparameters={"lr": 0.05}),
            training=Training(rounds=ROUNDS, batch_size=16, epochs=1, weighting="uniform"),
            round=RoundPolicy(least_nodes=len(NODES)),
            privacy=Privacy(unit="client", max_norm=1.0, noise_multiplier=0.5),
        )
        return specified(msgspec.structs.replace(plan, **changed), bundle)

    def begin(self, plan: Plan, bundle: bytes | None) -> str:
        request = StudyRequest(plan=dumps(plan), bundle=msgspec.UNSET if bundle is None else bundle)
        return self.admin.post("/v1/studies", request, StudyStarted).digest

    def rules(self, name: str, text: str) -> None:
        """A node's policy, in place of what it had."""
        state = self.folder / name
        state.mkdir(mode=0o700, exist_ok=True)
        (state / "policy.new").write_text(text)
        (state / "policy.new").rename(state / "policy.toml")

    def allow(self, bundle: bytes) -> None:
        for name in NODES:
            self.rules(name, f'[data.heart]\nrelease = "noised"\ncode = ["{digest_of(bundle)}"]\n')

    def node(self, name: str, failpoints: str = "", sandbox: str = "required") -> None:
        self.start_node(name, failpoints, settings={"sandbox": sandbox}, wait=False)

    def heard(self, plan: Plan, study: str) -> dict[int, list[str]]:
        run = runs_of(plan)[0].id
        return {r.round: r.heard for r in self.finished(study).rounds if r.run == run and r.round < ROUNDS}

    def imported_outside(self) -> bool:
        """Whether the bundle's code ever ran where it could write."""
        return any((self.folder / "marks").iterdir())

    def owner(self, name: str, *arguments: str) -> Any:
        command = [sys.executable, "-m", "freehold.cli", "node", *arguments, "--state", str(self.folder / name), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        return json.loads(done.stdout)


@pytest.fixture
def federation(tmp_path: Path, fork: Path) -> Iterator[Bundled]:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)  # else modes alone would keep the code from leaving its mark
    found = Bundled(tmp_path, NODES, fork=fork)
    found.start_coordinator()
    try:
        yield found
    finally:
        found.stop()


def test_a_study_of_code_that_comes_along_runs_in_jails_alone(federation: Bundled) -> None:
    bundle = federation.bundle()
    plan = federation.plan("mine", bundle)
    federation.allow(bundle)
    study = federation.begin(plan, bundle)
    federation.coordinator.kill()  # what it has acknowledged is there
    federation.start_coordinator()
    for name in NODES:
        federation.node(name)
    assert federation.begin(plan, bundle) == study
    assert federation.heard(plan, study) == dict.fromkeys(range(ROUNDS), NODES)
    shapes = {tuple(tensor.shape) for tensor in server_state(federation, runs_of(plan)[0].id).values()}
    assert any(5 in shape for shape in shapes), "the model is the bundle's"
    assert not federation.imported_outside()
    for name in NODES:
        [kept] = (federation.folder / name / "bundles").iterdir()
        assert kept.read_bytes() == bundle and kept.stat().st_mode & 0o777 == 0o600


def test_its_code_would_leave_a_mark_where_nothing_holds_it(federation: Bundled) -> None:
    """The control of the test above."""
    code = "import sys; from freehold.tasks.bundled import imported; from freehold.plan.bundle import digest_of, unpack\n"
    code += "body = sys.stdin.buffer.read(); imported(unpack(body, digest_of(body)))"
    subprocess.run([sys.executable, "-c", code], input=federation.bundle(), check=True)
    assert federation.imported_outside()


def test_code_that_no_rule_names_waits_and_its_owner_sees_what_changed(federation: Bundled) -> None:
    first, second = federation.bundle(), federation.bundle(width=6, first="import socket")
    federation.allow(first)
    federation.rules("hungary", "")
    held = federation.folder / "held"
    federation.node("cleveland", f"agent.sending=hold:{held}@1")
    federation.node("hungary")
    federation.begin(federation.plan("first", first), first)
    federation.nodes["hungary"].wait_for("plan.waits")
    federation.coordinator.wait_for("work.declined", code=PlanWaits.code)
    shown = federation.owner("hungary", "show", "first")
    assert "WIDTH = 5" in "\n".join(shown["code_changed"]) and "comes with the plan" in shown["summary"]["code"]
    federation.until(held.exists)
    federation.owner("hungary", "approve", "first")
    held.unlink()
    federation.nodes["hungary"].wait_for("contribution.sent")

    later = federation.plan("second", second)
    federation.begin(later, second)
    federation.nodes["hungary"].wait_for("plan.waits")
    shown = federation.owner("hungary", "show", "second")
    assert shown["verdict"] == "waits" and "socket" in shown["summary"]["code"]
    assert [line for line in shown["code_changed"] if line[0] in "+-"] == [
        "-WIDTH = 5",
        "+WIDTH = 6",
        "-    pass",
        "+    import socket",
    ]
    assert not federation.imported_outside()


def test_a_node_without_a_sandbox_declines_it(federation: Bundled) -> None:
    bundle = federation.bundle()
    plan = federation.plan("mine", bundle)
    federation.allow(bundle)
    federation.node("cleveland")
    federation.node("hungary", sandbox="off")
    study = federation.begin(plan, bundle)
    federation.coordinator.wait_for("work.declined", node="hungary", code=PolicyRefused.code)
    assert federation.heard(plan, study) == {round: ["cleveland"] for round in range(ROUNDS)}
    assert not federation.imported_outside()


def test_without_noise_it_is_denied_unless_the_owner_trusts_this_very_code(federation: Bundled) -> None:
    bundle = federation.bundle()
    plan = federation.plan("bare", bundle, privacy=Privacy())
    federation.allow(bundle)
    digest = digest_of(bundle)
    federation.rules("cleveland", f'[data.heart]\nrelease = "trusted-code"\ntrusted_code = ["{digest}"]\n')
    for name in NODES:
        federation.node(name)
    study = federation.begin(plan, bundle)
    federation.coordinator.wait_for("work.declined", node="hungary", code=PolicyRefused.code)
    assert federation.heard(plan, study) == {round: ["cleveland"] for round in range(ROUNDS)}


def test_code_that_cheats_is_stopped_and_the_study_goes_on(federation: Bundled) -> None:
    """It cheats where the data is the real one: on a coordinator there is only made-up data."""
    cheat = "import os, socket; os.path.exists('/data') and socket.socket().close()"
    bundle = federation.bundle(first=cheat)
    plan = federation.plan("cheat", bundle)
    federation.allow(bundle)
    for name in NODES:
        federation.node(name)
    study = federation.begin(plan, bundle)
    for name in NODES:
        assert federation.nodes[name].wait_for("work.refused")["code"] == TrainerFailed.code
    assert federation.study(study).state == "running"


def test_what_is_not_what_the_plan_names_is_refused_before_anything_runs(federation: Bundled) -> None:
    bundle, other = federation.bundle(), federation.bundle(width=7)
    plan = federation.plan("mine", bundle)
    plain = msgspec.structs.replace(plan, task=TaskRef(name="heart"))
    for said, given, error in ((plan, other, BundleUnfit), (plan, None, StudyRefused), (plain, bundle, StudyRefused)):
        with pytest.raises(FreeholdError) as caught:
            federation.begin(said, given)
        assert caught.value.code == error.code, caught.value
    assert not federation.imported_outside()
