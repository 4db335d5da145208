"""`freehold ledger` and `freehold node budget`, as an owner and an auditor use them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from freehold.cli.ledger import ledger
from freehold.cli.node import node
from freehold.errors import BudgetDamaged, FreeholdError, NotJoined, UsageError
from freehold.node.control import Control
from freehold.node.ledger import FILE
from freehold.plan import dumps
from freehold.report.cost import rounded_up
from freehold.wire.routes import WORK
from tests.unit.node.guarding import ROUNDS, cost, opened, piece, plan
from tests.unit.node.witnessing import Coordinator, coordinator


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ledger, [str(each) for each in arguments])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a node that let two contributions out, measured, refused, and polled since."""
    found = tmp_path / "alice"
    door = opened(found)
    for index in range(2):
        what = piece(index)
        door.begin(what)
        door.send("contribution", what, sha256="ab" * 32, length=1000 + index)
    door.note("approval", "by alice", plan="sha256:" + "0" * 64, verdict="approved")
    door.send("measures", piece(1), sha256="cd" * 32, length=70)
    door.close()
    Control(found)("POST", WORK.path, 33)
    return found


@pytest.fixture
def roots(tmp_path: Path, state: Path) -> Path:
    """Those of a coordinator that has witnessed it."""
    with coordinator(tmp_path / "coordinator") as court:
        witness(court, state)
        (tmp_path / "roots.pem").write_text(court.roots)
    return tmp_path / "roots.pem"


def witness(court: Coordinator, state: Path) -> None:
    door = opened(state)
    door.note("started", "strict", sandbox="strict")
    head = door.head()
    assert head is not None
    assert door.witnessed(court.shown("alice", head), court.roots) == []
    door.close()


def test_show_has_a_row_for_each_line_and_json_all_of_it(state: Path) -> None:
    shown = run("show", "--state", state)
    assert shown.exit_code == 0 and "1001" in shown.output and f"{cost(2):.3g}" in shown.output
    lines = [json.loads(line) for line in run("show", "--state", state, "--json").output.splitlines()]
    assert [line["kind"] for line in lines] == ["opened", "contribution", "contribution", "approval", "measures"]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5] and all("sig" not in line for line in lines)
    assert lines[2]["bytes"] == 1001 and lines[2]["epsilon"] >= cost(2)
    assert len(run("show", "--state", state, "--json", "--lines", "2").output.splitlines()) == 2
    assert run("show", "--state", state, "--json", "--since", "2999-01-01").output == ""
    assert len(run("show", "--state", state, "--json", "--since", "1h").output.splitlines()) == 5


def test_verify_says_what_it_found_and_who_has_witnessed_it(state: Path, roots: Path) -> None:
    done = run("verify", "--state", state, "--ca", roots, "--json")
    told = json.loads(done.output)
    assert list(told) == [
        *("file", "lines", "good", "key", "head", "wrong", "why", "notes", "budget", "checkpoint", "checkpoint_fault", "control")
    ]
    assert (done.exit_code, told["good"], told["lines"], told["wrong"], told["budget"]) == (0, True, 6, None, "")
    assert (told["checkpoint"]["n"], told["checkpoint"]["hash"]) == (6, told["head"])
    assert told["control"] == {"work": [1, 33]} and told["checkpoint_fault"] == ""
    shown = run("verify", "--state", state, "--ca", roots).output
    assert "whole: 6 lines" in shown and "witnessed by the coordinator up to line 6" in shown


def test_without_a_checkpoint_it_says_what_is_not_known(state: Path) -> None:
    shown = run("verify", "--state", state)
    assert shown.exit_code == 0 and "witnessed by nobody" in shown.output


def test_an_owner_who_has_left_still_verifies_but_is_told_what_was_not_checked(state: Path, roots: Path) -> None:
    told = json.loads(run("verify", "--state", state, "--json").output)
    assert told["good"] and told["checkpoint"] is None and "give --ca" in told["notes"][0]
    cut(state)
    assert json.loads(run("verify", "--state", state, "--json").output)["wrong"] == 6


def cut(state: Path) -> None:
    path = state / "ledger" / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_the_last_line_dropped_is_found(state: Path, roots: Path) -> None:
    cut(state)
    done = run("verify", "--state", state, "--ca", roots)
    assert done.exit_code == 1 and "Line 6 is wrong: the tail is missing" in done.output


def test_a_key_that_was_replaced_is_no_hindrance(state: Path, roots: Path, tmp_path: Path) -> None:
    shutil.copytree(state, tmp_path / "other")
    other = tmp_path / "third"
    opened(other).note("started", "strict")
    shutil.copy(other / "ledger" / "key.pem", state / "ledger" / "key.pem")
    done = run("verify", "--state", state, "--ca", roots, "--json")
    told = json.loads(done.output)
    assert done.exit_code == 0 and told["key"] == told["checkpoint"]["key"] and "another key" in told["notes"][0], told
    (state / "ledger" / "key.pem").unlink()
    assert run("verify", "--state", state, "--ca", roots).exit_code == 0
    shutil.copy(other / "ledger" / FILE, state / "ledger" / FILE)  # and another ledger with it
    done = run("verify", "--state", state, "--ca", roots)
    assert done.exit_code == 1 and "another key" in done.output


def test_a_checkpoint_or_a_budget_that_was_changed_is_a_fault(state: Path, roots: Path) -> None:
    path = state / "ledger" / "checkpoint.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"n":6', b'"n":5'))
    done = run("verify", "--state", state, "--ca", roots, "--json")
    assert done.exit_code == 1 and "signature does not hold" in json.loads(done.output)["checkpoint_fault"]
    path.write_bytes(b"{")
    assert run("verify", "--state", state, "--ca", roots).exit_code == 1
    path.write_bytes(whole)
    budget = state / "budget" / "budget.json"
    budget.write_bytes(budget.read_bytes().replace(b'"spent":2', b'"spent":1'))
    done = run("verify", "--state", state, "--ca", roots, "--json")
    assert done.exit_code == 1 and "was changed" in json.loads(done.output)["budget"]


def test_what_was_exported_is_verified_elsewhere(state: Path, roots: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported.jsonl"
    done = run("export", "--state", state, "--output", exported)
    assert done.exit_code == 0 and exported.read_bytes() == (state / "ledger" / FILE).read_bytes()
    with_checkpoint = ("--checkpoint", state / "ledger" / "checkpoint.json", "--ca", roots)
    assert run("verify", "--file", exported, *with_checkpoint).exit_code == 0
    key = json.loads(run("verify", "--file", exported, "--json").output)["key"]
    assert run("verify", "--file", exported, "--key", key).exit_code == 0
    assert run("verify", "--file", exported, "--key", "0" * 64).exit_code == 1
    exported.write_bytes(b"".join(exported.read_bytes().splitlines(keepends=True)[:-1]))
    assert run("verify", "--file", exported, "--key", key).exit_code == 0, "by itself it is a ledger"
    assert run("verify", "--file", exported, *with_checkpoint).exit_code == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--file", "x", "--coordinator"), "node's own ledger"),
        (("--checkpoint", "x"), "belongs to --file"),
        (("--file", "x", "--checkpoint", "y"), "needs the roots"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words: tuple[str, ...], why: str, state: Path) -> None:
    done = run("verify", *words, *(() if "--file" in words else ("--state", state)))
    assert done.exit_code != 0 and why in str(done.exception)


def test_a_clock_that_went_back_is_a_note(tmp_path: Path) -> None:
    door = opened(tmp_path / "alice")
    door._clock = iter([time.time(), 50.0, 60.0, 10.0]).__next__
    for text in ("a", "b", "c"):
        door.note("approval", text)
    told = json.loads(run("verify", "--state", tmp_path / "alice", "--json").output)
    assert told["good"] and "back 2 times" in told["notes"][0]


def test_the_budget_of_each_data_set_and_study(state: Path) -> None:
    done = CliRunner().invoke(node, ["budget", "--state", str(state), "--json"])
    told = json.loads(done.output)
    assert [(row["dataset"], row["rounds"], row["units"]) for row in told] == [("heart", 2, ["client"])] * 2
    assert told[0]["plan"].startswith("sha256:") and told[1]["plan"] == "all studies"
    assert [row["epsilon"] for row in told] == [pytest.approx(cost(2))] * 2 and told[0]["delta"] == 1e-5
    bare = plan(None)
    door = opened(state)
    door.begin(piece(0, of=bare))
    door.send("contribution", piece(0, of=bare), sha256="ab" * 32, length=1)
    door.close()
    told = json.loads(CliRunner().invoke(node, ["budget", "--state", str(state), "--json"]).output)
    assert [row["epsilon"] is None for row in told] == [False, True, True]
    shown = CliRunner().invoke(node, ["budget", "--state", str(state)])
    assert shown.exit_code == 0 and "unbounded" in shown.output and "all studies" in shown.output
    strict = json.loads(CliRunner().invoke(node, ["budget", "--state", str(state), "--json", "--delta", "1e-9"]).output)
    assert strict[0]["epsilon"] > cost(ROUNDS - 2)
    assert CliRunner().invoke(node, ["budget", "--state", str(state), "--delta", "2"]).exit_code != 0


def test_a_budget_that_is_gone_is_a_fault_and_not_nothing_spent(state: Path, tmp_path: Path) -> None:
    (state / "budget" / "budget.json").unlink()
    done = run("verify", "--state", state, "--json")
    assert done.exit_code == 1 and "is gone" in json.loads(done.output)["budget"]
    done = CliRunner().invoke(node, ["budget", "--state", str(state)])
    assert isinstance(done.exception, BudgetDamaged) and "Nothing was spent" not in done.output
    door = opened(tmp_path / "new")
    door.note("started", "strict", sandbox="strict")
    door.close()
    (tmp_path / "new" / "budget" / "budget.json").unlink(missing_ok=True)
    done = CliRunner().invoke(node, ["budget", "--state", str(tmp_path / "new")])
    assert done.exit_code == 0 and "Nothing was spent" in done.output


def test_epsilon_is_shown_with_its_delta_and_never_below(state: Path) -> None:
    shown = run("show", "--state", state).output
    told = [line for line in map(json.loads, run("show", "--state", state, "--json").output.splitlines()) if "epsilon" in line]
    assert told and all(f"{rounded_up(line['epsilon'])} at {line['delta']:g}" in shown for line in told)
    table = CliRunner().invoke(node, ["budget", "--state", str(state)]).output
    assert rounded_up(cost(2)) in table and float(rounded_up(cost(2))) >= cost(2)


def test_a_ledger_or_a_node_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    done = run("verify", "--file", tmp_path / "none.jsonl")
    assert isinstance(done.exception, UsageError) and "There is no ledger" in str(done.exception)
    for words in (["pending"], ["show", "abcd"], ["approve", "abcd"], ["deny", "abcd"]):
        done = CliRunner().invoke(node, [*words, "--state", str(tmp_path / "carol")])
        assert isinstance(done.exception, NotJoined) and "There is no node" in str(done.exception)


def fails(done: Result) -> FreeholdError:
    """The numbered error with which a command ended."""
    assert isinstance(done.exception, FreeholdError), done.exception
    return done.exception


@pytest.mark.parametrize("key", ["zz", "", "ab" * 31, "AB" * 32, "ab" * 33, "é" * 64])
def test_a_key_that_is_none_is_an_error_of_its_own(state: Path, key: str) -> None:
    for found in ((), ("--file", state / "ledger" / FILE)):
        error = fails(run("verify", "--state", state, "--key", key, *found))
        assert isinstance(error, UsageError) and error.exit_code == 2 and "no public key" in error.message


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "binary"])
def test_files_that_are_none_end_in_numbered_errors(state: Path, tmp_path: Path, roots: Path, what: str) -> None:
    odd = tmp_path / "odd"
    if what == "folder":
        odd.mkdir()
    elif what != "missing":
        odd.write_bytes(b"" if what == "empty" else os.urandom(64) + b"\xff\n")
    ledger_file, checkpoint = state / "ledger" / FILE, state / "ledger" / "checkpoint.json"
    given = ("verify", "--file", ledger_file)
    fails(run(*given, "--checkpoint", odd, "--ca", roots))
    for done in (
        run("verify", "--file", odd),
        run(*given, "--checkpoint", checkpoint, "--ca", odd),
        run("verify", "--state", state, "--ca", odd),
    ):
        assert done.exit_code == 1 and (isinstance(done.exception, FreeholdError | SystemExit)), done.exception
    for command in ("show", "verify"):
        fails(run(command, "--state", odd))
    fails(CliRunner().invoke(node, ["budget", "--state", str(odd)]))
    fails(run("show", "--state", state, "--since", "zz"))


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "binary"])
def test_plans_policies_and_signatures_that_are_none_end_in_numbered_errors(tmp_path: Path, what: str) -> None:
    odd, good, rules = tmp_path / "odd", tmp_path / "plan.toml", tmp_path / "policy.toml"
    if what == "folder":
        odd.mkdir()
    elif what != "missing":
        odd.write_bytes(b"" if what == "empty" else b"\xff\xfe\x00")
    good.write_text(dumps(plan(None)))
    rules.write_text("")

    def checked(*words: Path | str) -> Result:
        return CliRunner().invoke(node, ["policy", "check", *map(str, words)])

    assert fails(checked(odd, "--policy", rules)).exit_code == 2
    if what != "empty":  # an empty policy allows nothing, which is no error
        assert fails(checked(good, "--policy", odd)).exit_code == 2
    if what != "folder":  # that of a node without rules
        fails(checked(good, "--state", odd))
    if what in ("folder", "binary"):
        odd.rename(tmp_path / "plan.toml.sig")
        assert fails(checked(good, "--policy", rules)).exit_code == 2
