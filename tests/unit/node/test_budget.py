"""The budget and the door: never too little is counted, whatever dies when; and no file that was changed is believed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest

from freehold.errors import BudgetDamaged, BudgetExceeded, LedgerError
from freehold.node.audit import entries, verify
from freehold.node.budget import Budget, Limits
from freehold.node.control import Control
from freehold.node.door import Door, Piece
from freehold.node.ledger import FILE, Ledger
from freehold.plan import digest
from freehold.privacy.accounting import epsilon
from freehold.wire.routes import WORK
from tests.unit.node.guarding import ROUNDS, cost, killed, noised, opened, piece, plan
from tests.unit.node.test_ledger import armed

POINTS = ("node.budget.writing", "node.budget.written", "node.budget.named")


def one_round(door: Door, what: Piece) -> float:
    door.begin(what)
    spent = door.send("contribution", what, sha256="ab" * 32, length=100)
    assert spent is not None
    return spent.total


def test_noise_composes_over_rounds_and_studies_and_restarts(tmp_path: Path) -> None:
    door = opened(tmp_path)
    assert [one_round(door, piece(k)) for k in range(2)] == [cost(1), cost(2)]
    door.close()
    door = opened(tmp_path)
    other = plan(9.0, name="q")
    total = one_round(door, piece(0, of=other))
    assert total == epsilon([noised(4.0, 2), noised(9.0)], 1e-5)
    assert total < cost(2) + cost(1, 9.0), "less than the sum"
    last = list(entries(tmp_path / "ledger"))[-1]
    assert (last.kind, last.bytes, last.sha256, last.verdict, last.unit) == ("contribution", 100, "ab" * 32, "sent", "client")
    assert last.epsilon is not None and total <= last.epsilon < total + 1e-4 and last.plan == digest(other)
    assert verify(tmp_path / "ledger" / FILE).wrong is None


def test_what_has_no_noise_is_counted_as_unbounded(tmp_path: Path) -> None:
    door = opened(tmp_path)
    bare = plan(None)
    assert one_round(door, piece(of=bare)) == math.inf
    last = list(entries(tmp_path / "ledger"))[-1]
    assert last.epsilon is None and last.unit == "none"
    with pytest.raises(BudgetExceeded, match="no ε at all"):
        door.begin(piece(of=plan(9.0), limits=Limits(epsilon_total=100.0)))


def test_noise_that_is_next_to_none_is_counted_as_none(tmp_path: Path) -> None:
    assert one_round(opened(tmp_path), piece(of=plan(1e-9))) == math.inf
    assert list(entries(tmp_path / "ledger"))[-1].epsilon is None


def test_a_study_that_would_overdraw_before_its_end_is_refused_before_its_first_round(tmp_path: Path) -> None:
    door = opened(tmp_path)
    enough, short = Limits(epsilon_total=cost(ROUNDS)), Limits(epsilon_total=cost(ROUNDS) - 0.01)
    with pytest.raises(BudgetExceeded, match="the owner allows"):
        door.begin(piece(limits=short))
    for index in range(ROUNDS):
        one_round(door, piece(index, limits=enough))
    with pytest.raises(BudgetExceeded, match=r"all studies together .* other plans have taken ε = "):
        door.begin(piece(of=plan(50.0, name="q"), limits=enough))
    with pytest.raises(BudgetExceeded, match=r"this study [^,]*, at [^,]*; the owner allows ε = [0-9.]+\. More"):
        door.begin(piece(of=plan(1.0, name="r"), limits=Limits(epsilon_per_study=cost(ROUNDS))))
    assert list(entries(tmp_path / "ledger"))[-1].n == 1 + ROUNDS


def test_repeats_of_a_plan_are_paid_for_at_its_first_round(tmp_path: Path) -> None:
    twice, door = plan(repeats=2), opened(tmp_path)
    with pytest.raises(BudgetExceeded):
        door.begin(piece(of=twice, limits=Limits(epsilon_total=cost(2 * ROUNDS) - 0.01)))
    limits = Limits(epsilon_total=cost(2 * ROUNDS))
    for run in range(2):
        for index in range(ROUNDS):
            one_round(door, piece(index, of=twice, run=run, limits=limits))
    with pytest.raises(BudgetExceeded):
        door.begin(piece(0, of=twice, run=1, limits=limits))


def test_a_round_that_is_done_again_costs_again_and_one_that_was_given_up_nothing(tmp_path: Path) -> None:
    door = opened(tmp_path)
    assert one_round(door, piece(0)) == cost(1)
    assert one_round(door, piece(0)) == cost(2)
    door.begin(piece(1))
    door.begin(piece(1))  # asked again while it is trained
    door.give_up()
    assert one_round(door, piece(1)) == cost(3)
    with pytest.raises(BudgetExceeded):
        door.begin(piece(2, limits=Limits(epsilon_total=cost(ROUNDS))))


def test_nothing_is_let_out_that_was_not_reserved(tmp_path: Path) -> None:
    with pytest.raises(BudgetDamaged, match="not reserved"):
        opened(tmp_path).send("contribution", piece(0), sha256="ab" * 32, length=1)
    assert [each.kind for each in entries(tmp_path / "ledger")] == ["opened"]


def test_measures_and_decisions_are_in_the_ledger_and_cost_no_epsilon(tmp_path: Path) -> None:
    door = opened(tmp_path)
    assert door.send("measures", piece(), sha256="cd" * 32, length=5) is None
    door.note("approval", "approved by alice", plan="sha256:00", verdict="approved")
    door.refuse(BudgetExceeded("too much"), run="r", round=3)
    control = Control(tmp_path)
    for length in (100, 200):
        control("POST", WORK.path, length)
    door.send("measures", piece(), sha256="cd" * 32, length=5)
    door.send("measures", piece(), sha256="cd" * 32, length=5)
    found = list(entries(tmp_path / "ledger"))[1:]
    assert [each.kind for each in found] == ["measures", "approval", "refusal", "measures", "control", "measures"]
    assert found[0].epsilon is None and (found[2].code, found[2].round) == (343, 3)
    assert (found[4].messages, found[4].bytes, found[4].kinds) == (2, 300, {"work": (2, 300)})


def damaged(state: Path) -> str:
    with pytest.raises(BudgetDamaged) as caught:
        opened(state).begin(piece(9))
    assert "never set back" in str(caught.value)
    return caught.value.message


def test_a_budget_that_was_changed_lost_or_put_back_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    door, file = opened(tmp_path), tmp_path / "budget" / "budget.json"
    one_round(door, piece(0))
    first, ledger = file.read_bytes(), (tmp_path / "ledger" / FILE).read_bytes()
    one_round(door, piece(1))
    one_round(door, piece(2))
    door.close()
    newest, whole = file.read_bytes(), (tmp_path / "ledger" / FILE).read_bytes()
    text = json.loads(newest.splitlines()[0])
    text["sets"]["heart"][0]["spent"] = 0
    for body in (newest.replace(b'"spent":3', b'"spent":0'), json.dumps(text).encode(), b"", newest[:-3]):
        file.write_bytes(body)
        assert "was changed" in damaged(tmp_path)
        assert file.read_bytes() == body
    file.write_bytes(first)
    assert "put back" in damaged(tmp_path)
    file.unlink()
    assert "is gone" in damaged(tmp_path) and not file.exists()
    file.write_bytes(newest)
    (tmp_path / "ledger" / FILE).write_bytes(ledger)  # the ledger put back instead
    assert "put back" in damaged(tmp_path)
    file.write_bytes(first)  # both, to the same moment: only a witness elsewhere knows
    held = Ledger(tmp_path / "ledger", node="alice")
    assert Budget(file.parent, held).entries()["heart"][0].spent == 1
    held.close()
    (tmp_path / "ledger" / FILE).write_bytes(whole)
    file.write_bytes(newest)
    assert one_round(opened(tmp_path), piece(3)) == cost(4)


def test_a_line_that_is_missing_where_the_guard_may_have_died_is_told_of(tmp_path: Path) -> None:
    door = opened(tmp_path)
    one_round(door, piece(0))
    one_round(door, piece(1))
    door.close()
    path = tmp_path / "ledger" / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert one_round(opened(tmp_path), piece(2)) == cost(3), "the budget was not cut"
    kinds = [each.kind for each in entries(tmp_path / "ledger")]
    assert kinds == ["opened", "contribution", "repaired", "contribution"]


@pytest.mark.parametrize("point", [*POINTS, "node.ledger.writing", "node.ledger.written"])
def test_on_a_full_disk_nothing_is_let_out_and_nothing_is_forgotten(tmp_path: Path, point: str) -> None:
    door = opened(tmp_path)
    before = one_round(door, piece(0))
    door.begin(piece(1))
    with armed(f"{point}=full"), pytest.raises(LedgerError, match="cannot be used"):
        door.send("contribution", piece(1), sha256="ab" * 32, length=1)
    assert [each.round for each in entries(tmp_path / "ledger") if each.kind == "contribution"] == [0]
    door.give_up()
    after = one_round(door, piece(1))
    assert before < after <= cost(3), "at most one round too many"
    assert [each.round for each in entries(tmp_path / "ledger") if each.kind == "contribution"] == [0, 1]


@pytest.mark.parametrize("when", [1, 2, 4])
@pytest.mark.parametrize("point", [*POINTS, "node.ledger.writing", "node.ledger.written"])
def test_after_a_kill_at_any_step_what_was_sent_is_counted(tmp_path: Path, point: str, when: int) -> None:
    code, left = killed(tmp_path, f"{point}=kill@{when}")
    assert code == -9
    sent = len(left)
    ledger = Ledger(tmp_path / "ledger", node="alice")
    budget = Budget(tmp_path / "budget", ledger)
    spent = sum(e.rounds for e in budget.entries().get("heart", []))
    assert sent <= spent <= sent + 1
    told = sum(each.kind == "contribution" for each in entries(tmp_path / "ledger"))
    assert sent <= told <= sent + 1
    ledger.close()
    assert verify(tmp_path / "ledger" / FILE).wrong is None
    door = opened(tmp_path)  # and it goes on
    assert one_round(door, piece(3)) == pytest.approx(cost(spent + 1))


def test_limits_count_at_the_owners_delta(tmp_path: Path) -> None:
    strict = Limits(epsilon_total=cost(ROUNDS), delta=1e-9)
    with pytest.raises(BudgetExceeded, match="1e-09"):
        opened(tmp_path).begin(piece(limits=strict))
    assert msgspec.structs.replace(strict, delta=1e-5).epsilon_total == cost(ROUNDS)


def test_a_guard_that_died_within_a_line_goes_on_with_all_that_the_budget_had(tmp_path: Path) -> None:
    """The budget is on the disk before the line: the torn line must not pass for a ledger that was put back."""
    door = opened(tmp_path)
    one_round(door, piece(0))
    door.begin(piece(1))
    door.close()
    with (tmp_path / "ledger" / FILE).open("ab") as file:
        file.write(b'{"prev":"')
    door = opened(tmp_path)
    assert one_round(door, piece(1)) == cost(2)
    door.close()
    found = list(entries(tmp_path / "ledger"))
    assert [(line.kind, line.bytes) for line in found[1:]] == [("contribution", 100), ("repaired", 9), ("contribution", 100)]
    assert verify(tmp_path / "ledger" / FILE).wrong is None
