"""The owner's word on an errand: reasons stay here, a broken policy changes nothing, and nothing is lost by a kill."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from freehold.errors import (
    ApprovalError,
    BenefitKept,
    FreeholdError,
    LedgerError,
    OwnerDenied,
    PlanWaits,
    PolicyRefused,
    UnknownName,
)
from freehold.failpoints import VARIABLE
from freehold.node.admission import SAID, Admission
from freehold.node.approvals import MOST_WAITING, Approvals
from freehold.node.benefit import binned
from freehold.node.errands import MeasureErrand, OutgoingMeasures, TrainErrand
from freehold.node.rulings import MOST_KEPT, Rulings
from freehold.plan import Plan, Privacy, digest, parse, runs_of
from freehold.policy import DataRules, sample_policy
from freehold.policy.decide import contribution_bytes
from freehold.wire.messages import Measured
from tests.unit.policy.plans import NOON, heart

POINTS = [
    f"node.{what}.{step}"
    for what in ("waiting", "approval", "policy", "bytes", "noted", "ruling")
    for step in ("writing", "written", "named")
]
EVERYTHING = sample_policy("heart")


class Owner:
    """A node's state folder, and who asks."""

    def __init__(self, folder: Path, rules: str | None = None) -> None:
        self.folder, self.quit, self.renewed = folder, 0, 0
        self.now, self.full = NOON, False
        self.lines: list[tuple[str, str, dict[str, str | None]]] = []
        if rules is not None:
            self.write(rules)
        self.admission = self.restarted()

    def restarted(self) -> Admission:
        datasets = {"heart": str(self.folder / "heart.csv")}
        return Admission(self.folder, datasets=datasets, clock=lambda: self.now, note=self.note)

    def note(self, kind: str, text: str, **told: str | None) -> None:
        if self.full:
            raise LedgerError("full")
        self.lines.append((kind, text, told))

    def write(self, rules: str) -> None:
        fresh = self.folder / "policy.new"
        fresh.write_text(rules)
        fresh.rename(self.folder / "policy.toml")

    def ask(self, plan: Plan, round: int = 0, *, measure: bool = False, cohort: int = 4) -> DataRules:
        run = runs_of(plan)[0]
        errand = (
            MeasureErrand(run=run.id, round=round, left_s=1.0)
            if measure
            else TrainErrand(run=run.id, round=round, cohort=cohort, population=4, left_s=1.0)
        )

        def refused() -> None:
            self.quit += 1

        def renewed() -> None:
            self.renewed += 1

        return self.admission.ask(plan, run, errand, refused=refused, renewed=renewed)

    def events(self) -> list[str]:
        return [event.name for event in self.admission.events()]


def test_each_policy_and_each_decision_is_in_the_ledger_once(tmp_path: Path) -> None:
    owner, plan, other = Owner(tmp_path, EVERYTHING), heart(), heart(name="other")
    for index in range(2):
        owner.ask(plan, index)
    first = hashlib.sha256(EVERYTHING.encode()).hexdigest()
    assert owner.lines == [("policy", "before: none", {"sha256": first})]
    strict = EVERYTHING + "smallest_cohort = 3\n"
    owner.write(strict)
    approvals = Approvals(tmp_path)
    for each, says in ((plan, "approved"), (other, "denied")):
        approvals.keep(each, None)
        approvals.say(digest(each), says, "for a reason")
    owner.full = True
    with pytest.raises(LedgerError):
        owner.ask(plan, 2)
    owner.full = False
    owner.ask(plan, 2)
    owner.ask(plan, 3)
    assert len(owner.lines) == 4
    for each, says in ((plan, "approved"), (other, "denied")):
        assert ("approval", "for a reason", {"plan": digest(each), "study": each.name, "verdict": says}) in owner.lines
    assert ("policy", f"before: {first}", {"sha256": hashlib.sha256(strict.encode()).hexdigest()}) in owner.lines
    before = list(owner.lines)
    owner.admission = owner.restarted()
    owner.ask(plan, 4)
    assert owner.lines == before, "a restarted guard writes none of it again"
    approvals.say(digest(other), "approved")
    owner.ask(plan, 5)
    assert [line[2]["verdict"] for line in owner.lines[len(before) :]] == ["approved"]


def test_a_policy_that_the_ledger_cannot_take_is_not_in_force(tmp_path: Path) -> None:
    owner, plan = Owner(tmp_path, EVERYTHING), heart()
    owner.ask(plan)
    owner.write("")
    owner.full = True
    for index in (1, 2):
        with pytest.raises(LedgerError):
            owner.ask(plan, index)
    owner.full = False
    with pytest.raises(PlanWaits):
        owner.ask(plan, 3)


def test_a_coordinator_gets_a_fixed_sentence_and_the_owner_the_reason(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    secret = heart(name="secret-name")
    with pytest.raises(PlanWaits) as waits:
        owner.ask(secret)
    owner.write("[data.heart]\nrelease = 'noised'\ntasks = ['heart']\n")
    with pytest.raises(PolicyRefused) as refused:
        owner.ask(secret)
    assert (waits.value.message, refused.value.message) == (SAID["waits"], SAID["denied"])
    assert "secret-name" in waits.value.hint and "release: found" not in refused.value.message
    assert "release" in refused.value.hint
    assert owner.quit == 2
    assert owner.events() == ["plan.waits", "policy.changed", "plan.denied"]


def test_a_plan_waits_once_and_is_told_once(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    for round in range(3):
        with pytest.raises(PlanWaits):
            owner.ask(heart(), round)
    assert owner.events() == ["plan.waits"]
    [(identity, entry)] = Approvals(tmp_path).entries()
    assert (identity, entry.state, entry.since) == (digest(heart()), "waits", NOON)


def test_what_the_owner_says_counts_at_the_next_errand_and_after_a_restart(tmp_path: Path) -> None:
    owner, approvals = Owner(tmp_path), Approvals(tmp_path)
    with pytest.raises(PlanWaits):
        owner.ask(heart())
    approvals.say(digest(heart()), "approved")
    assert owner.ask(heart()).share_benefit == "never"
    approvals.say(digest(heart()), "denied", "no more")
    owner.write(EVERYTHING)
    for _ in range(2):
        with pytest.raises(OwnerDenied):
            owner.ask(heart())
        owner.admission = owner.restarted()
    with pytest.raises(UnknownName):
        approvals.say(digest(heart(name="another")), "approved")


def test_a_broken_policy_leaves_the_old_one_in_force_also_in_a_guard_that_is_started_anew(tmp_path: Path) -> None:
    owner = Owner(tmp_path, EVERYTHING)
    owner.ask(heart())
    owner.write("[data.heart]\nrelese = 1\n")
    for _ in range(2):
        assert owner.ask(heart()).share_benefit == "named"
        assert owner.events() == ["policy.broken"]
        owner.admission = owner.restarted()
    owner.write("")
    with pytest.raises(PlanWaits):
        owner.ask(heart())
    assert owner.events() == ["policy.changed", "plan.waits"]


def test_a_policy_that_is_taken_away_permits_nothing(tmp_path: Path) -> None:
    owner = Owner(tmp_path, EVERYTHING)
    owner.ask(heart())
    (tmp_path / "policy.toml").unlink()
    with pytest.raises(PlanWaits):
        owner.ask(heart())


def test_where_nothing_is_in_force_and_the_policy_is_broken_every_plan_waits(tmp_path: Path) -> None:
    with pytest.raises(PlanWaits):
        Owner(tmp_path, "nonsense").ask(heart())


@pytest.mark.parametrize("body", ["{}", "nonsense", None])
def test_an_approval_that_was_tampered_with_allows_nothing(tmp_path: Path, body: str | None) -> None:
    owner, approvals = Owner(tmp_path, EVERYTHING), Approvals(tmp_path)
    other = heart(name="other")
    for plan in (heart(), other):
        approvals.keep(plan, None)
    approvals.say(digest(other), "approved")
    path = approvals.folder / f"{digest(heart()).removeprefix('sha256:')}.json"
    approved = (approvals.folder / f"{digest(other).removeprefix('sha256:')}.json").read_text()
    path.write_text(approved if body is None else body)  # another plan's approval under this plan's name
    with pytest.raises(ApprovalError):
        owner.ask(heart())
    assert len(approvals.entries()) == 1


def test_what_rules_decided_is_kept_for_the_owner_and_written_once(tmp_path: Path) -> None:
    owner, identity = Owner(tmp_path, EVERYTHING), digest(heart())
    owner.ask(heart(), 0)
    rulings = Rulings(tmp_path)
    first = rulings.of(identity)
    assert first is not None and (first.says, first.decided) == ("allowed", NOON)
    assert first.policy == hashlib.sha256(EVERYTHING.encode()).hexdigest()
    assert all(each.passed for each in first.rules) and {each.rule for each in first.rules} >= {"data", "code", "release"}
    owner.now += 60
    owner.ask(heart(), 1)
    owner.admission = owner.restarted()
    owner.ask(heart(), 2)
    assert rulings.of(identity) == first  # nothing is new
    owner.write(EVERYTHING + "smallest_cohort = 9\n")
    with pytest.raises(PolicyRefused):
        owner.ask(heart(), 3)
    last = rulings.of(identity)
    assert last is not None and (last.says, last.decided) == ("denied", NOON + 60)
    assert [each.rule for each in last.rules if not each.passed] == ["smallest_cohort"]
    assert parse(last.plan) == heart()


def test_what_waits_or_was_denied_by_the_owner_is_no_ruling(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    with pytest.raises(PlanWaits):
        owner.ask(heart())
    Approvals(tmp_path).say(digest(heart()), "denied")
    with pytest.raises(OwnerDenied):
        owner.ask(heart())
    assert Rulings(tmp_path).entries() == []


def test_a_coordinator_cannot_fill_the_disk_with_what_rules_decide(tmp_path: Path) -> None:
    owner = Owner(tmp_path, EVERYTHING)
    for number in range(MOST_KEPT + 3):
        owner.now += 1
        owner.ask(heart(name=f"plan{number}"))
    assert len(Rulings(tmp_path).entries()) == MOST_KEPT
    assert Rulings(tmp_path).of(digest(heart(name=f"plan{MOST_KEPT + 2}"))) is not None


def test_plans_that_are_sent_to_be_denied_hide_none_that_was_allowed(tmp_path: Path) -> None:
    owner, ran = Owner(tmp_path, EVERYTHING + "smallest_cohort = 3\n"), heart(name="ran")
    owner.ask(ran, cohort=4)
    for number in range(MOST_KEPT + 3):
        with pytest.raises(PolicyRefused):
            owner.ask(heart(name=f"plan{number}"), cohort=1)
    found = Rulings(tmp_path).of(digest(ran))
    assert found is not None and found.says == "allowed"
    assert len(Rulings(tmp_path).entries()) == MOST_KEPT


def test_a_plan_that_gave_way_is_kept_again_once_it_is_asked_for(tmp_path: Path) -> None:
    owner, ran = Owner(tmp_path, EVERYTHING), heart(name="plan0")
    for number in range(MOST_KEPT):
        owner.now = NOON + number
        owner.ask(heart(name=f"plan{number}"))
    owner.admission = owner.restarted()
    owner.ask(ran)
    owner.ask(heart(name="another"))
    assert Rulings(tmp_path).of(digest(ran)) is None
    owner.ask(ran)
    assert Rulings(tmp_path).of(digest(ran)) is not None


def test_what_is_denied_in_the_end_is_still_told_to_have_been_allowed(tmp_path: Path) -> None:
    """The coordinator says how large a cohort is: a last piece of work must not make a plan that ran look as if it never had."""
    owner, ran = Owner(tmp_path, EVERYTHING + "smallest_cohort = 3\n"), heart(name="ran")
    owner.ask(ran, cohort=4)
    for cohort in (1, 1):
        with pytest.raises(PolicyRefused):
            owner.ask(ran, cohort=cohort)
    found = Rulings(tmp_path).of(digest(ran))
    assert found is not None and (found.says, found.allowed) == ("denied", NOON)
    owner.ask(ran, cohort=4)
    found = Rulings(tmp_path).of(digest(ran))
    assert found is not None and (found.says, found.allowed) == ("allowed", None)


def test_a_coordinator_cannot_fill_the_disk_with_plans(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    for number in range(MOST_WAITING + 3):
        owner.now += 1
        with pytest.raises(PlanWaits):
            owner.ask(heart(name=f"plan{number}"))
    entries = Approvals(tmp_path).entries()
    assert len(entries) == MOST_WAITING
    assert digest(heart(name="plan2")) not in dict(entries) and digest(heart(name="plan3")) in dict(entries)


def test_bytes_of_a_day_are_counted_before_they_leave_and_once_for_each_round(tmp_path: Path) -> None:
    size = contribution_bytes(heart().contribution)
    owner = Owner(tmp_path, EVERYTHING + f"bytes_per_day = {2 * size}\n")
    owner.ask(heart(), 0)
    owner.ask(heart(), 0)
    owner.admission = owner.restarted()
    owner.ask(heart(), 1)
    owner.ask(heart(), 0)
    with pytest.raises(PolicyRefused) as caught:
        owner.ask(heart(), 2)
    assert "bytes_per_day" in caught.value.hint
    owner.now += 86400
    owner.ask(heart(), 2)
    (tmp_path / "approvals" / "bytes.today").write_text("[]")
    with pytest.raises(ApprovalError):
        owner.ask(heart(), 3)


def test_a_round_that_is_asked_for_again_after_it_left_is_counted_again(tmp_path: Path) -> None:
    """Or a coordinator could have the same round trained all day, each time from another shared state."""
    size = contribution_bytes(heart().contribution)
    owner = Owner(tmp_path, EVERYTHING + f"bytes_per_day = {2 * size}\n")
    work = f"{runs_of(heart())[0].id}:0"
    for _ in range(2):
        owner.ask(heart(), 0)
        owner.admission.left("heart", work)
        owner.admission = owner.restarted()
    with pytest.raises(PolicyRefused) as caught:
        owner.ask(heart(), 0)
    assert "bytes_per_day" in caught.value.hint


def test_what_is_measured_leaves_as_the_owner_says(tmp_path: Path) -> None:
    told = Measured(examples=43, sums={"count": 43.0, "correct": 31.0, "count_by_class/0": 6.0, "correct_by_class/0": 5.0})
    measured = OutgoingMeasures(splits={"test": told})
    owner = Owner(tmp_path, EVERYTHING.replace("named", "binned"))
    rules = owner.ask(heart(), measure=True)
    shared = owner.admission.share(rules, heart(), measured).splits["test"]
    assert (shared.examples, shared.sums["count"], shared.sums["count_by_class/0"]) == (40, 40.0, 10.0)
    assert shared.sums["correct"] / 40 == pytest.approx(0.7) and shared.sums["correct_by_class/0"] == pytest.approx(8.5)
    assert binned({"test": Measured(examples=0, sums={})})["test"].examples == 0
    with pytest.raises(BenefitKept) as kept:
        owner.admission.share(DataRules(), heart(), measured)
    assert kept.value.message == SAID["kept"]
    assert owner.admission.share(DataRules(share_benefit="named"), heart(), measured) is measured


@pytest.mark.parametrize("unit", ["record", "client"])
def test_what_is_measured_stays_where_a_plan_promises_an_epsilon(tmp_path: Path, unit: str) -> None:
    measured = OutgoingMeasures(splits={"test": Measured(examples=43, sums={"count": 43.0, "correct": 31.0})})
    noise = Privacy(unit=unit, max_norm=1.0, noise_multiplier=1.0, expected_batch=8.0 if unit == "record" else None)  # type: ignore[arg-type]
    training = msgspec.structs.replace(heart().training, weighting="uniform")
    plan = msgspec.structs.replace(heart(), privacy=noise, training=training)
    with pytest.raises(BenefitKept) as kept:
        Owner(tmp_path, EVERYTHING).admission.share(DataRules(share_benefit="named"), plan, measured)
    assert kept.value.message == SAID["kept"] and "promises an ε" in kept.value.hint


def test_a_trainer_gets_the_columns_that_the_owner_lists_and_no_others(tmp_path: Path) -> None:
    table = tmp_path / "heart.csv"
    table.write_text('\ufeffage;name;"the; sum"\n63;"Mr; Doe";1\n\n41;x;2\n')
    owner, plan = Owner(tmp_path, EVERYTHING), heart()
    owner.ask(plan)
    assert owner.admission.table(plan, str(table)) == str(table)
    owner.write(EVERYTHING + 'columns = ["age", "the; sum", "not there"]\n')
    owner.ask(plan)
    assert owner.renewed == 1  # whoever has read all columns is ended
    copy = Path(owner.admission.table(plan, str(table)))
    assert copy.read_text() == 'age;"the; sum"\n63;1\n41;2\n'
    assert copy.stat().st_mode & 0o777 == 0o600
    owner.ask(plan)
    assert owner.renewed == 1
    table.write_bytes(b"PAR1 and so on")
    with pytest.raises(PolicyRefused) as caught:
        owner.ask(plan)
    assert "no CSV file" in caught.value.hint


SCRIPT = """
import sys
from pathlib import Path
from freehold.node.approvals import Approvals
from freehold.plan import digest
from tests.unit.node.test_admission import EVERYTHING, Owner
from tests.unit.policy.plans import heart
folder = Path(sys.argv[1])
owner, approvals = Owner(folder, EVERYTHING + "bytes_per_day = 4000\\n"), Approvals(folder)
owner.ask(heart())
approvals.keep(heart(name="waiting"), None)
approvals.say(digest(heart(name="waiting")), "denied")
owner.ask(heart())
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_the_owners_word_whole(tmp_path: Path, point: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env={**os.environ, VARIABLE: f"{point}=kill"}, check=False)
    assert done.returncode == -9, point
    subprocess.run(command, cwd=root, env={**os.environ, VARIABLE: ""}, check=True)
    owner = Owner(tmp_path)
    assert Approvals(tmp_path).state_of(digest(heart(name="waiting"))) == "denied"
    owner.ask(heart(), 1)
    with pytest.raises(FreeholdError):
        owner.ask(heart(), 2)  # what was counted before the kill counts


def test_a_full_disk_allows_nothing(tmp_path: Path) -> None:
    from freehold import failpoints

    failpoints.arm("node.policy.writing=full")
    try:
        owner = Owner(tmp_path, EVERYTHING)
        with pytest.raises(ApprovalError):
            owner.ask(heart())
        assert owner.quit == 1
    finally:
        failpoints.arm("")
    owner.ask(heart())
