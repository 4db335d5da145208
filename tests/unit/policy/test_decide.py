"""Default deny, rule by rule: what is removed never allows more, and each line that is printed makes its rule pass."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.plan import Plan, digest
from freehold.policy import LIMITS, PERMITS, DataRules, Facts, Policy, decide, parse_policy
from freehold.signing import key_line, make_key, sign
from tests.unit.policy.plans import FOREIGN, facts, heart, noised

KEY = "MCowBQYDK2VwAyEA" + "A" * 43 + "="
CODE = heart().task.__class__(name="theirs", digest=FOREIGN)
BROUGHT = heart().task.__class__(name="heart", bundle=FOREIGN)
PLANS = st.sampled_from(
    [
        *(heart(), noised("record"), noised("client")),
        *(heart(task=CODE), noised("record", task=CODE), noised("client", task=CODE)),
        *(heart(task=BROUGHT), noised("record", task=BROUGHT), noised("client", task=BROUGHT)),
    ]
)
RULES = st.builds(
    DataRules,
    release=st.sampled_from([None, "trusted-code", "secure-sum", "noised"]),
    least_sum=st.just(3),
    share_benefit=st.sampled_from(["never", "binned", "named"]),
    tasks=st.sampled_from([(), ("heart",), ("digits",), ("heart", "digits")]),
    code=st.sampled_from([(), (FOREIGN,), ("sha256:" + "0" * 64,)]),
    trusted_code=st.sampled_from([(), (FOREIGN,)]),
    gpu=st.booleans(),
    study_keys=st.sampled_from([(), (KEY,)]),
    unit=st.sampled_from(["none", "record", "client"]),
    epsilon_per_study=st.sampled_from([None, 0.5, 4.0]),
    epsilon_total=st.sampled_from([None, 0.5, 9.0]),
    delta=st.sampled_from([None, 1e-6, 1e-3]),
    most_clip=st.sampled_from([None, 0.5, 2.0]),
    bytes_per_day=st.sampled_from([None, 10, 10**6]),
    smallest_cohort=st.sampled_from([1, 3, 9]),
    secure_aggregation=st.booleans(),
    hours=st.sampled_from(["", "22:00-06:00", "06:00-22:00"]),
    memory=st.sampled_from([None, 0, 10**9]),
    cpus=st.sampled_from([None, 0.5, 2.0]),
    sandbox=st.sampled_from(["none", "basic", "strict"]),
    columns=st.sampled_from([None, (), ("age",), ("age", "sex")]),
    keep_days=st.sampled_from([None, 30.0]),
)
FACTS = st.builds(
    facts,
    cohort=st.sampled_from([None, 2, 5]),
    sent_today=st.sampled_from([0, 10**5]),
    epsilon=st.sampled_from([None, 1.0, 5.0]),
    spent=st.sampled_from([0.0, 3.0]),
    sandbox=st.sampled_from(["none", "standard"]),
    bounded=st.sampled_from(["", "processes", "group"]),
    columns=st.sampled_from([None, ("age", "sex")]),
    approval=st.sampled_from(["", "approved", "denied"]),
    local=st.just(time.gmtime),
)


def policy_of(plan: Plan, rules: DataRules) -> Policy:
    return Policy(data={plan.task.name: rules})


def edited(rules: DataRules, line: str) -> DataRules:
    """The rules with a line of TOML put in place of what is there, read as a file is."""
    key = line.partition(" = ")[0]
    read = parse_policy(f"[data.heart]\nleast_sum = 3\n{line}").data["heart"]
    return msgspec.structs.replace(rules, **{key: getattr(read, key)})


@given(plan=PLANS, rules=RULES, known=FACTS)
@settings(max_examples=300, deadline=None)
def test_what_is_removed_from_what_permits_never_allows_more(plan: Plan, rules: DataRules, known: Facts) -> None:
    if decide(policy_of(plan, rules), plan, known).says == "allowed":
        return
    for key in PERMITS:
        lessened = msgspec.structs.replace(rules, **{key: getattr(DataRules(), key)})
        assert decide(policy_of(plan, lessened), plan, known).says != "allowed", key
    if known.approval != "approved":
        assert decide(Policy(), plan, known).says != "allowed"
        assert decide(Policy(data={"other": rules}), plan, known).says != "allowed"


@given(plan=PLANS, rules=RULES, known=FACTS)
@settings(max_examples=300, deadline=None)
def test_each_line_that_is_printed_makes_its_rule_pass(plan: Plan, rules: DataRules, known: Facts) -> None:
    verdict = decide(policy_of(plan, rules), plan, known)
    for finding in verdict.failed:
        if finding.rule == "owner":
            continue
        if not finding.line:
            foreign = plan.task.name == "theirs" or plan.task.bundle is not None
            assert finding.rule in ("code", "release", "columns", "sandbox") and (foreign or finding.rule == "columns")
            assert finding.rule != "sandbox" or plan.task.bundle is not None
            continue
        again = decide(policy_of(plan, edited(rules, finding.line)), plan, known)
        assert next(each for each in again.findings if each.rule == finding.rule).passed, finding
    if verdict.says != "allowed" and all(each.line for each in verdict.failed) and known.approval != "denied":
        for finding in verdict.failed:
            rules = edited(rules, finding.line)
        assert decide(policy_of(plan, rules), plan, known).says == "allowed"


@given(plan=PLANS, rules=RULES, known=FACTS)
@settings(max_examples=200, deadline=None)
def test_a_verdict_is_what_its_findings_say(plan: Plan, rules: DataRules, known: Facts) -> None:
    verdict = decide(policy_of(plan, rules), plan, known)
    assert (verdict.says == "allowed") == (not verdict.failed) == (verdict.rules is not None)


def test_every_key_either_permits_or_forbids() -> None:
    assert sorted((*PERMITS, *LIMITS)) == sorted(DataRules.__struct_fields__)


@pytest.mark.parametrize("plan", [heart(), noised("client"), noised("client", task=CODE)], ids=["plain", "noised", "foreign"])
def test_without_a_policy_a_plan_waits_and_the_table_that_is_printed_allows_it(plan: Plan) -> None:
    verdict = decide(Policy(), plan, facts())
    assert verdict.says == "waits"
    assert decide(parse_policy(verdict.failed[0].line), plan, facts()).says == "allowed"


def test_an_approval_covers_a_plan_and_lifts_no_limit() -> None:
    approved = facts(approval="approved")
    assert decide(Policy(), heart(), approved).says == "allowed"
    found = decide(Policy(), heart(), approved).rules
    assert found is not None and found.share_benefit == "never"
    strict = Policy(data={"heart": DataRules(release="trusted-code", tasks=("digits",), smallest_cohort=9)})
    assert decide(strict, heart(), facts()).says == "waits"
    assert [each.rule for each in decide(strict, heart(), approved).failed] == ["smallest_cohort"]


def test_foreign_code_without_noise_of_the_guard_is_refused_whatever_the_owner_wrote_or_approved() -> None:
    for plan in (heart(task=CODE), noised("record", task=CODE)):
        for release in ("trusted-code", "noised"):
            rules = DataRules(release=release, code=(FOREIGN,))  # type: ignore[arg-type]
            for approval in ("", "approved"):
                verdict = decide(policy_of(plan, rules), plan, facts(approval=approval))
                assert verdict.says == "denied" and [each.rule for each in verdict.failed] == ["release"]
        assert decide(Policy(), plan, facts(approval="approved")).says == "denied"


def test_foreign_code_is_not_covered_by_the_name_it_gives_itself() -> None:
    rules = DataRules(release="noised", tasks=("theirs",))
    assert decide(Policy(data={"theirs": rules}), noised("client", task=CODE), facts()).says == "waits"


def test_a_plan_that_promises_nothing_costs_more_than_any_budget() -> None:
    rules = DataRules(release="trusted-code", tasks=("heart",), epsilon_per_study=1e9)
    assert [each.rule for each in decide(policy_of(heart(), rules), heart(), facts()).failed] == ["epsilon_per_study"]


def test_the_signature_counts_not_what_it_says_of_itself(tmp_path: Path) -> None:
    plan = heart()
    make_key(tmp_path / "a", tmp_path / "a.pub")
    make_key(tmp_path / "b", tmp_path / "b.pub")
    good, other = sign(digest(plan), tmp_path / "a"), sign(digest(plan), tmp_path / "b")
    version, who, _ = good.split(".")
    forged = ".".join((version, who, other.split(".")[2]))
    rules = DataRules(release="trusted-code", tasks=("heart",), study_keys=(key_line(tmp_path / "a.pub"),))
    told = {s: decide(policy_of(plan, rules), plan, facts(signature=s)).says for s in (good, other, forged, "", "x.y.z")}
    assert told.pop(good) == "allowed"
    assert set(told.values()) == {"denied"}
    said = {s: decide(policy_of(plan, rules), plan, facts(signature=s)).failed[0].found for s in (other, forged)}
    assert "another plan, or damaged" in said[forged] and "damaged" not in said[other]
    changed = heart(min_examples=11)
    assert decide(policy_of(changed, rules), changed, facts(signature=good)).says == "denied"
