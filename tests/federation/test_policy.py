"""The owner's policy in a real federation: who is not allowed is not heard, and what the owner says counts without a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import BenefitKept, OwnerDenied, PlanWaits, PolicyRefused
from freehold.plan import Plan, digest, dumps, runs_of
from freehold.policy import sample_policy
from freehold.signing import key_line, make_key, sign
from freehold.wire.admin import StudyRequest, StudyStarted
from tests.federation.harness import Federation, Process, heart_plan

NODES = ["cleveland", "hungary", "switzerland"]
OTHERS = ["cleveland", "switzerland"]
ROUNDS = 3
EVERYTHING = sample_policy("heart")


class Owned(Federation):
    """A federation in which hungary's owner has something to say."""

    @property
    def state(self) -> Path:
        return self.folder / "hungary"

    def rules(self, text: str) -> None:
        """Edit hungary's policy, as an editor does: a new file in place of the old."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        fresh = self.state / "policy.new"
        fresh.write_text(text)
        fresh.rename(self.state / "policy.toml")

    def owner(self, *arguments: str, fine: bool = True) -> Any:
        """What a command of hungary's owner prints as JSON."""
        command = [sys.executable, "-m", "freehold.cli", "node", *arguments, "--state", str(self.state), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == fine, done.stderr
        return json.loads(done.stdout)

    def status(self) -> tuple[int, list[str]]:
        """The exit code of `freehold status`, and what is amiss with studies."""
        command = [sys.executable, "-m", "freehold.cli", "status", "--state", str(self.folder / "coordinator"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, [text for text in json.loads(done.stdout)["amiss"] if text.startswith("study")]

    def begin(self, plan: Plan, rules: str, *, failpoints: str = "") -> Process:
        """Start a study with hungary under these rules; hungary's process."""
        self.rules(rules)
        self.start_node("cleveland", failpoints)
        self.start_node("switzerland")
        self.start_node("hungary")
        self.run(plan)
        return self.nodes["hungary"]

    def measured(self, plan: Plan) -> dict[str, dict[str, Any]]:
        """Node -> what it told of its model, or that it declined."""
        found = self.finished(digest(plan)).measures[runs_of(plan)[0].id]
        return {node: json.loads(text) for node, text in found.items()}

    def heard(self, plan: Plan) -> dict[int, list[str]]:
        return {r.round: r.heard for r in self.finished(digest(plan)).rounds if r.round < ROUNDS}

    def declined(self, plan: Plan, code: int) -> None:
        self.coordinator.wait_for("work.declined", run=runs_of(plan)[0].id, node="hungary", code=code)


def plan(name: str, **changed: object) -> Plan:
    return heart_plan("fedavg", name=name, rounds=ROUNDS, nodes=3, **changed)


@pytest.fixture
def federation(tmp_path: Path, fork: Path) -> Iterator[Owned]:
    found = Owned(tmp_path, NODES, fork=fork)
    found.start_coordinator()
    try:
        yield found
    finally:
        found.stop()


def test_a_plan_that_no_rule_covers_waits_and_the_study_goes_on_without_the_node(federation: Owned) -> None:
    waiting = plan("waiting")
    hungary = federation.begin(waiting, "")
    assert hungary.wait_for("plan.waits")["plan"] == digest(waiting)
    federation.declined(waiting, PlanWaits.code)
    assert federation.heard(waiting) == dict.fromkeys(range(ROUNDS), OTHERS)
    assert not list((federation.state / "studies").glob("*"))  # the data was not looked at
    [listed] = federation.owner("pending")
    assert (listed["digest"], listed["name"]) == (digest(waiting), "waiting")
    shown = federation.owner("show", listed["digest"][:19])
    assert shown["verdict"] == "waits" and "trestbps" in shown["summary"]["data"]
    assert "waiting" not in json.dumps(federation.measured(waiting).get("hungary", {}))


def test_who_is_approved_while_a_study_runs_takes_part_and_keeps_its_figures(federation: Owned) -> None:
    held, later = federation.folder / "held", plan("later")
    hungary = federation.begin(later, "", failpoints=f"agent.sending=hold:{held}@1")
    hungary.wait_for("plan.waits")
    federation.declined(later, PlanWaits.code)
    federation.until(held.exists)
    assert federation.owner("approve", "later")["verdict"] == "allowed"
    held.unlink()
    assert federation.heard(later) == {0: OTHERS, 1: NODES, 2: NODES}
    told = federation.measured(later)["hungary"]
    assert told["code"] == BenefitKept.code and "splits" not in told
    assert "alone" in next((federation.state / "studies").glob("*.json")).read_text()  # its owner sees them


def test_what_the_owner_denied_stays_denied_until_the_owner_says_otherwise(federation: Owned) -> None:
    held, denied = federation.folder / "held", plan("denied")
    hungary = federation.begin(denied, "", failpoints=f"agent.sending=hold:{held}@1")
    hungary.wait_for("plan.waits")
    federation.declined(denied, PlanWaits.code)
    federation.until(held.exists)
    federation.owner("deny", "denied", "--reason", "not with these")
    federation.rules(EVERYTHING)
    held.unlink()
    federation.declined(denied, OwnerDenied.code)
    assert federation.heard(denied) == dict.fromkeys(range(ROUNDS), OTHERS)
    assert federation.owner("show", "denied")["verdict"] == "denied"


def test_an_edited_policy_holds_from_the_next_round_on_and_a_broken_one_does_not(federation: Owned) -> None:
    held, edited = federation.folder / "held", plan("edited")
    hungary = federation.begin(edited, EVERYTHING, failpoints=f"agent.sending=hold:{held}@2")
    federation.until(held.exists)
    federation.until(lambda: federation.coordinator.told("contribution.received", round=1, node="hungary"))
    federation.rules(EVERYTHING + "smallest_cohrt = 9\n")
    held.unlink()
    assert "smallest_cohrt" in hungary.wait_for("policy.broken")["why"]
    assert federation.heard(edited) == dict.fromkeys(range(ROUNDS), NODES)
    assert "splits" in federation.measured(edited)["hungary"]
    federation.rules(EVERYTHING + "smallest_cohort = 9\n")
    strict = plan("strict")
    federation.run(strict)
    assert hungary.wait_for("plan.denied", plan=digest(strict))["rules"] == "smallest_cohort"
    hungary.wait_for("work.refused", code=PolicyRefused.code)
    assert federation.heard(strict) == dict.fromkeys(range(ROUNDS), OTHERS)
    [ruled] = [each for each in federation.owner("pending", "--all") if each["name"] == "strict"]
    assert (ruled["state"], ruled["by"]) == ("denied", "rules")
    decided = federation.owner("show", "strict")["decided"]
    assert [each["rule"] for each in decided["rules"] if not each["passed"]] == ["smallest_cohort"]
    told = federation.measured(strict)["hungary"]
    assert told["message"] == "A rule of the owner's policy says no."


def test_only_a_plan_that_was_signed_with_a_known_key_runs(federation: Owned) -> None:
    key = federation.folder / "key"
    make_key(key, federation.folder / "key.pub")
    rules = EVERYTHING.replace("named", "binned") + f'study_keys = ["{key_line(federation.folder / "key.pub")}"]\n'
    unsigned, signed = plan("unsigned"), plan("signed", min_examples=11)
    federation.begin(unsigned, rules)
    federation.declined(unsigned, PolicyRefused.code)
    assert federation.heard(unsigned) == dict.fromkeys(range(ROUNDS), OTHERS)
    request = StudyRequest(plan=dumps(signed), signature=sign(digest(signed), key))
    federation.admin.post("/v1/studies", request, StudyStarted)
    assert federation.heard(signed) == dict.fromkeys(range(ROUNDS), NODES)
    for split in federation.measured(signed)["hungary"]["splits"].values():
        assert split["examples"] % 10 == 0 and split["sums"]["count"] == split["examples"]
        assert round(split["sums"]["correct"] / split["examples"] * 20, 6) % 1 == 0


def test_an_operator_is_told_of_a_study_that_waits_because_nodes_declined(federation: Owned) -> None:
    alone = heart_plan("fedavg", name="alone", rounds=ROUNDS, nodes=1)
    federation.rules("")
    federation.start_node("hungary")
    assert not federation.status()[1]
    federation.run(alone)
    federation.declined(alone, PlanWaits.code)
    federation.until(lambda: bool(federation.study(digest(alone)).runs[0].declined))
    code, [amiss] = federation.status()
    assert code == 1
    assert "study alone" in amiss and f"hungary (error {PlanWaits.code})" in amiss and "needs 1 answer, has 0" in amiss
    [run, *_] = federation.study(digest(alone)).runs
    assert (run.declined, run.needs, run.asked) == ({"hungary": PlanWaits.code}, 1, [])
