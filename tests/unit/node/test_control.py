"""Control messages: each is counted before it leaves, none is large, and not too many leave at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.errors import ControlRefused, LedgerError
from freehold.node import control
from freehold.node.audit import entries
from freehold.node.control import BURST, LIMIT_BYTES, PER_S, Control, taken, waiting
from freehold.node.door import CONTROL_MESSAGES, Door
from freehold.wire.routes import BLOB, CONTRIBUTE, DECLINED, MEASURES, WORK
from tests.unit.node.test_full_disk import DISK_BYTES, UNSHARE, fill, possible

ROUND = CONTRIBUTE.at(run="0" * 16 + "-0", round=1)


def test_each_kind_is_counted_and_what_has_a_line_only_where_it_is_sent_again(tmp_path: Path) -> None:
    meter = Control(tmp_path)
    for _ in range(2):
        meter("POST", WORK.path, 40)
    meter("GET", BLOB.at(sha256="a" * 64), 0)
    meter("POST", DECLINED.path, 90)
    meter.expect(ROUND)
    meter.expect(MEASURES.path)
    meter("PUT", ROUND, 5_000_000)
    meter("POST", MEASURES.path, 300)
    assert waiting(tmp_path) == {"work": (2, 80), "blob": (1, 0), "declined": (1, 90)}
    meter("PUT", ROUND, 5_000_000)
    meter("POST", MEASURES.path, 300)
    assert waiting(tmp_path)["again"] == (2, 5_000_300)
    assert sum(n for n, _ in waiting(tmp_path).values()) == 6, "another process reads the same"


def test_what_is_too_large_for_a_control_message_does_not_leave(tmp_path: Path) -> None:
    meter = Control(tmp_path)
    meter("POST", WORK.path, LIMIT_BYTES)
    with pytest.raises(ControlRefused):
        meter("POST", WORK.path, LIMIT_BYTES + 1)
    assert waiting(tmp_path) == {"work": (1, LIMIT_BYTES)}


def test_who_sends_too_many_waits(tmp_path: Path) -> None:
    now, slept = 0.0, list[float]()
    meter = Control(tmp_path, sleep=slept.append, clock=lambda: now)
    for _ in range(int(BURST)):
        meter("POST", WORK.path, 1)
    assert slept == []
    meter("POST", WORK.path, 1)
    assert slept == [pytest.approx(1 / PER_S)]
    now = 3600.0
    for _ in range(int(BURST)):
        meter("POST", WORK.path, 1)
    assert len(slept) == 1


def test_what_was_taken_is_counted_no_more_and_what_could_not_be_written_is(tmp_path: Path) -> None:
    meter = Control(tmp_path)
    meter("POST", WORK.path, 7)
    with pytest.raises(KeyError), taken(tmp_path) as counts:
        assert counts == {"work": (1, 7)}
        raise KeyError
    assert waiting(tmp_path) == {"work": (1, 7)}
    with taken(tmp_path):
        pass
    assert waiting(tmp_path) == {}
    meter("POST", WORK.path, 9)
    assert waiting(tmp_path) == {"work": (1, 9)}


def test_counts_that_a_power_cut_damaged_are_told_of_as_lost(tmp_path: Path) -> None:
    Control(tmp_path)("POST", WORK.path, 7)
    (tmp_path / control.FILE).write_bytes(b'{"work":[1')
    Control(tmp_path)("POST", WORK.path, 7)
    assert waiting(tmp_path) == {"lost": (0, 0), "work": (1, 7)}


def line_of(state: Path) -> list[tuple[int | None, int | None]]:
    return [(each.messages, each.bytes) for each in entries(state / "ledger") if each.kind == "control"]


def test_a_line_comes_with_the_first_work_and_then_only_after_many(tmp_path: Path) -> None:
    from tests.unit.node.guarding import piece, plan

    meter, door = Control(tmp_path), Door(tmp_path, node="alice", peer="https://c")
    bare = plan(None)
    meter("POST", WORK.path, 10)
    door.begin(piece(0, of=bare))
    assert line_of(tmp_path) == [(1, 10)]
    meter("POST", WORK.path, 10)
    door.begin(piece(0, of=bare))
    assert line_of(tmp_path) == [(1, 10)], "the chain does not grow with each poll"
    for _ in range(CONTROL_MESSAGES - 1):
        meter("POST", WORK.path, 10)
    door.begin(piece(0, of=bare))
    assert line_of(tmp_path) == [(1, 10), (CONTROL_MESSAGES, CONTROL_MESSAGES * 10)]


@pytest.mark.skipif(not possible(), reason="this user may not mount a small disk here")
@pytest.mark.parametrize("scenario", ["nothing_leaves", "a_refusal_leaves"])
def test_on_a_disk_that_is_really_full(tmp_path: Path, scenario: str) -> None:
    code = f"import sys; from pathlib import Path; from {__name__} import {scenario}; on_small_disk = {scenario}; "
    code += f"from {__name__} import mounted; mounted(Path(sys.argv[1]), on_small_disk)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*UNSHARE, sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def mounted(folder: Path, scenario: Callable[[Path], None]) -> None:
    """In namespaces of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder], check=True)
    scenario(folder)
    print("done")


def nothing_leaves(disk: Path) -> None:
    """Neither ledger, nor budget, nor count can be written: each says so, and with room all goes on."""
    from tests.unit.node.guarding import piece, plan

    bare = plan(None)
    door = Door(disk / "node", node="alice", peer="https://c")
    door.begin(piece(0, of=bare))
    fill(disk / "filler", 0)
    with pytest.raises(LedgerError, match="No space left"):
        door.send("contribution", piece(0, of=bare), sha256="ab" * 32, length=1)
    with pytest.raises(LedgerError, match="No space left") as caught:
        while True:  # what is left of the last page is used up first
            door.send("measures", piece(0, of=bare), sha256="ab" * 32, length=1)
    assert "nothing was sent" in caught.value.hint
    with pytest.raises(LedgerError, match="No space left"):
        Control(disk / "another")("POST", WORK.path, 1)
    (disk / "filler").unlink()
    door.give_up()
    door.begin(piece(1, of=bare))
    assert door.send("contribution", piece(1, of=bare), sha256="ab" * 32, length=1) is not None
    lines = list(entries(disk / "node" / "ledger"))
    assert [(each.kind, each.round) for each in lines if each.kind == "contribution"] == [("contribution", 1)]


def a_refusal_leaves(disk: Path) -> None:
    """A disk that fills up later keeps no refusal from being told: its count has its place already."""
    meter = Control(disk / "node")
    meter("POST", WORK.path, 1)
    fill(disk / "filler", 0)
    meter("POST", DECLINED.path, 100)
    assert waiting(disk / "node") == {"work": (1, 1), "declined": (1, 100)}
