"""What `freehold node policy check` says of ε, beside what the budget of the node has spent already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from freehold.cli.node import node
from freehold.errors import BudgetExceeded, PlanWaits, PolicyRefused
from freehold.node.admission import Admission
from freehold.node.budget import Limits
from freehold.node.door import Piece
from freehold.node.errands import TrainErrand
from freehold.node.rulings import Rulings
from freehold.plan import Privacy, digest, dumps, runs_of
from freehold.policy import sample_policy
from freehold.privacy.accounting import epsilon_of
from freehold.report.cost import rounded_up
from tests.federation.harness import write_hospitals
from tests.unit.node.guarding import ROUNDS, cost, opened, piece, plan
from tests.unit.policy.plans import heart

RULES = '[data.heart]\nrelease = "noised"\ntasks = ["heart"]\n'


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a node that has let one noised contribution out, to another study."""
    found = tmp_path / "alice"
    door, what = opened(found), piece(0, of=plan(4.0, name="earlier"))
    door.begin(what)
    door.send("contribution", what, sha256="ab" * 32, length=1)
    door.close()
    return found


def rules_of(state: Path, limits: str, noise: float | None = 4.0) -> tuple[int, dict[str, tuple[bool, str]]]:
    """The exit code, and of each rule whether it passes and what was found."""
    (state / "policy.toml").write_text(RULES + limits)
    path = state / "plan.toml"
    path.write_text(dumps(plan(noise)))
    done = CliRunner().invoke(node, ["policy", "check", str(path), "--state", str(state), "--json"])
    return done.exit_code, {each["rule"]: (each["passed"], each["found"]) for each in json.loads(done.stdout)["rules"]}


def test_a_study_that_the_budget_would_refuse_is_not_called_allowed(state: Path) -> None:
    whole = cost(ROUNDS)
    code, rules = rules_of(state, f"epsilon_per_study = {rounded_up(whole)}\n")
    assert code == 0 and rules["epsilon_per_study"] == (True, f"{whole:.4g}")
    code, rules = rules_of(state, f"epsilon_per_study = {whole - 0.01}\n")
    assert code == 1 and not rules["epsilon_per_study"][0]


def test_what_other_studies_have_cost_counts_as_the_budget_counts_it(state: Path) -> None:
    """Noise composes: together they cost less than the sum, and more than each."""
    both, own = cost(ROUNDS + 1), cost(ROUNDS)
    code, rules = rules_of(state, f"epsilon_total = {(own + both) / 2}\n")
    assert code == 1 and rules["epsilon_total"] == (False, f"{both - own:.4g} spent + {own:.4g}")
    assert rules_of(state, f"epsilon_total = {both + 1e-3}\n")[0] == 0


def test_rounds_that_were_asked_for_twice_count_as_the_budget_counts_them(state: Path) -> None:
    door = opened(state)
    for _ in range(3):
        door.begin(piece(0))
        door.send("contribution", piece(0), sha256="ab" * 32, length=1)
    door.close()
    whole = cost(ROUNDS + 2)
    code, rules = rules_of(state, f"epsilon_per_study = {rounded_up(whole)}\n")
    assert code == 0 and rules["epsilon_per_study"] == (True, f"{whole:.4g}")
    assert rules_of(state, f"epsilon_per_study = {whole - 0.01}\n")[0] == 1
    door, short = opened(state), Limits(epsilon_per_study=whole - 0.01)
    with pytest.raises(BudgetExceeded):
        door.begin(piece(1, limits=short))
    door.begin(piece(1, limits=Limits(epsilon_per_study=float(rounded_up(whole)))))
    door.close()


def test_what_left_with_other_records_counts_too(state: Path) -> None:
    """As in the budget, which counts each number of records of a study by itself."""
    asked = msgspec.structs.replace(plan(None), privacy=PER_RECORD)
    with_other = Piece(plan=asked, run=runs_of(asked)[0].id, round=0, dataset="heart", examples=100)
    door = opened(state)
    door.begin(with_other)
    door.send("contribution", with_other, sha256="ab" * 32, length=1)
    door.close()
    _, told = checked(state, "", "--records", "200")
    found = told["epsilon"]
    assert found > epsilon_of(asked, ROUNDS, 200, delta=1e-5) + 0.01
    limits = Limits(epsilon_per_study=found - 0.01)
    door = opened(state)
    with pytest.raises(BudgetExceeded):
        door.begin(replace(with_other, examples=200, limits=limits))
    door.begin(replace(with_other, examples=200, limits=Limits(epsilon_per_study=float(rounded_up(found)))))
    door.close()


def test_what_a_rule_decided_can_be_seen_and_overruled_afterwards(state: Path) -> None:
    (state / "policy.toml").write_text(sample_policy("heart") + "smallest_cohort = 9\n")
    admission, asked = Admission(state), heart()
    run = runs_of(asked)[0]
    errand = TrainErrand(run=run.id, round=0, cohort=4, population=4, left_s=1.0)
    with pytest.raises(PolicyRefused):
        admission.ask(asked, run, errand, refused=lambda: None, renewed=lambda: None)
    (state / "policy.toml").write_text(sample_policy("heart"))

    def run_node(*words: str) -> str:
        done = CliRunner().invoke(node, [*words, "--state", str(state)], catch_exceptions=False)
        return done.stdout

    assert run_node("pending", "--json").strip() == "[]"
    [told] = json.loads(run_node("pending", "--all", "--json"))
    assert (told["name"], told["state"], told["by"]) == (asked.name, "denied", "rules")
    shown = run_node("show", asked.name)
    assert "denied by the rules since" in shown
    assert "smallest_cohort: found 4 nodes, wanted 9 or more" in shown, "as it was then"
    assert "allowed, by the rules of heart" in shown, "as it would be now"
    run_node("deny", digest(asked)[7:20], "--reason", "no more")
    assert "denied by you since" in run_node("show", asked.name)
    [told] = json.loads(run_node("pending", "--all", "--json"))
    assert (told["state"], told["by"]) == ("denied", "owner")


def test_an_owner_is_told_that_a_plan_which_rules_deny_now_was_allowed(state: Path) -> None:
    (state / "policy.toml").write_text(sample_policy("heart") + "smallest_cohort = 3\n")
    admission, asked = Admission(state), heart()
    run = runs_of(asked)[0].id

    def ask(cohort: int) -> None:
        errand = TrainErrand(run=run, round=0, cohort=cohort, population=4, left_s=1.0)
        admission.ask(asked, runs_of(asked)[0], errand, refused=lambda: None, renewed=lambda: None)

    def shown(*words: str) -> str:
        return CliRunner().invoke(node, ["show", asked.name, "--state", str(state), *words], catch_exceptions=False).stdout

    ask(4)
    assert "allowed until" not in shown() and "allowed_until" not in json.loads(shown("--json"))["decided"]
    with pytest.raises(PolicyRefused):
        ask(1)
    assert "denied by the rules since" in shown() and "allowed until" in shown()
    assert json.loads(shown("--json"))["decided"]["allowed_until"] > 0


def test_what_waits_is_listed_as_waiting_and_what_a_rule_allows_is_not(state: Path) -> None:
    admission, asked = Admission(state), heart()
    run = runs_of(asked)[0]
    errand = TrainErrand(run=run.id, round=0, cohort=4, population=4, left_s=1.0)

    def listed(*words: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(node, ["pending", "--state", str(state), "--json", *words], catch_exceptions=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def ask(rules: str) -> None:
        (state / "policy.toml").write_text(rules)
        admission.ask(asked, run, errand, refused=lambda: None, renewed=lambda: None)

    with pytest.raises(PlanWaits):
        ask("")
    assert len(listed()) == 1
    ask(sample_policy("heart"))
    assert listed() == [] and [each["state"] for each in listed("--all")] == ["allowed"], "it trains"
    with pytest.raises(PlanWaits):
        ask("# none")
    assert len(listed()) == 1 and [(each["state"], each["by"]) for each in listed("--all")] == [("waits", "")]
    [(_, ruling)] = Rulings(state).entries()
    assert ruling.allowed is not None, "and it did"


PER_RECORD = Privacy(unit="record", max_norm=1.0, noise_multiplier=1.0, expected_batch=8.0)


def checked(state: Path, limits: str, *words: str) -> tuple[int, dict[str, Any]]:
    """What `policy check` says of a plan with noise per record."""
    (state / "policy.toml").write_text(RULES.replace("noised", "trusted-code") + limits)
    path = state / "plan.toml"
    path.write_text(dumps(msgspec.structs.replace(plan(None), privacy=PER_RECORD)))
    done = CliRunner().invoke(node, ["policy", "check", str(path), "--state", str(state), "--json", *words])
    return done.exit_code, json.loads(done.stdout)


def test_noise_per_record_is_told_its_epsilon_by_the_records_that_are_here(state: Path) -> None:
    asked = msgspec.structs.replace(plan(None), privacy=PER_RECORD)
    own = epsilon_of(asked, ROUNDS, 200, delta=1e-5)
    code, told = checked(state, f"epsilon_per_study = {rounded_up(own)}\n", "--records", "200")
    assert code == 0 and (told["epsilon"], told["records"]) == (own, 200)
    code, told = checked(state, f"epsilon_per_study = {own - 0.01}\n", "--records", "200")
    assert code == 1 and [each["rule"] for each in told["rules"] if not each["passed"]] == ["epsilon_per_study"]
    code, told = checked(state, f"epsilon_total = {own + 0.01}\n", "--records", "200")
    assert code == 1 and told["spent"] > 0.01, "the other study has cost something"
    code, told = checked(state, f"epsilon_per_study = {own}\n", "--records", "100")
    assert code == 1 and told["epsilon"] > own, "of fewer records each is drawn more often"


def test_the_records_of_the_nodes_own_data_are_counted_by_the_plans_split(state: Path) -> None:
    write_hospitals(state)
    (state / "node.toml").write_text('name = "cleveland"\n[data]\nheart = "cleveland.csv"\n')
    code, told = checked(state, "")
    asked = msgspec.structs.replace(plan(None), privacy=PER_RECORD)
    rows = len((state / "cleveland.csv").read_text().splitlines()) - 1
    assert code == 0 and 0 < told["records"] < rows
    assert told["epsilon"] == epsilon_of(asked, ROUNDS, told["records"], delta=1e-5)


def test_without_data_nobody_knows_what_noise_per_record_costs(state: Path) -> None:
    code, told = checked(state, "epsilon_per_study = 1.0\n")
    assert code == 0 and told["epsilon"] is None, "the budget refuses it on the node"
