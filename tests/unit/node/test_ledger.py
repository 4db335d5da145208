"""The ledger: whole after a kill at any step, and whatever is changed in it, left out, moved or doubled is found."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import failpoints
from freehold.errors import LedgerDamaged, LedgerError, StateInUse
from freehold.node import audit
from freehold.node import ledger as ledger_module
from freehold.node.audit import entries, verify
from freehold.node.ledger import FILE, Ledger
from freehold.node.lines import LIMIT_BYTES, Line, digest

POINTS = ("node.ledger.writing", "node.ledger.written")
KEY_POINTS = ("node.ledger-key.writing", "node.ledger-key.written", "node.ledger-key.named")


def line(text: str, kind: str = "refusal") -> Line:
    return Line(prev="", n=0, time=0.0, kind=kind, text=text)


@contextmanager
def armed(text: str) -> Iterator[None]:
    failpoints.arm(text)
    try:
        yield
    finally:
        failpoints.arm("")


def written(folder: Path, count: int = 5) -> bytes:
    """A ledger of so many lines and the first; its bytes."""
    ledger = Ledger(folder, node="alice", clock=iter(range(1000, 9999)).__next__)
    for index in range(count):
        ledger.append(line(f"number {index}"))
    ledger.close()
    return (folder / FILE).read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("good")
    return folder, written(folder)


def judged(folder: Path, body: bytes, **given: object) -> audit.Verdict:
    path = folder / "changed"
    path.write_bytes(body)
    return verify(path, **given)  # type: ignore[arg-type]


def test_what_was_written_is_read_and_holds(tmp_path: Path) -> None:
    written(tmp_path)
    found = verify(tmp_path / FILE)
    assert (found.lines, found.wrong, found.notes) == (6, None, ())
    told = list(entries(tmp_path))
    assert [each.n for each in told] == [1, 2, 3, 4, 5, 6]
    assert told[0].kind == "opened" and told[0].key == found.key and told[0].peer == "alice"
    assert [each.text for each in told[1:]] == [f"number {k}" for k in range(5)]
    assert [each.n for each in entries(tmp_path, since=1003)] == [4, 5, 6]
    ledger = Ledger(tmp_path, node="alice")
    assert ledger.head == found.head, "it goes on where it was"
    ledger.append(line("later"))
    assert verify(tmp_path / FILE).wrong is None
    assert oct((tmp_path / "key.pem").stat().st_mode & 0o777) == oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o600"


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_one_byte_changed_anywhere_is_found_in_its_line(good: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, body = good
    at = data.draw(st.integers(0, len(body) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda b: b != body[at]))
    found = judged(folder, body[:at] + bytes([other]) + body[at + 1 :])
    if body[at : at + 1] == b"\n" and at + 1 < len(body):
        assert found.wrong == body[:at].count(b"\n") + 1, "two lines have become one"
    else:
        assert found.wrong == body[:at].count(b"\n") + 1
    assert found.why


def test_every_byte_of_the_last_line_counts(good: tuple[Path, bytes]) -> None:
    """Nothing comes after it to bind it but its own signature."""
    folder, body = good
    start = body.rstrip(b"\n").rfind(b"\n") + 1
    for at in range(start, len(body)):
        assert judged(folder, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]).wrong == 6, at


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_line_dropped_doubled_or_moved_is_found(good: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, body = good
    lines = body.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["dropped", "doubled", "moved"]))
    a = data.draw(st.integers(0, len(lines) - (2 if kind == "dropped" else 1)))  # without the last, it is a ledger: see below
    changed = list(lines)
    if kind == "dropped":
        del changed[a]
        first = a + 1
    elif kind == "doubled":
        b = data.draw(st.integers(0, len(lines)))
        changed.insert(b, lines[a])
        first = b + 1 if b != a else a + 2
    else:
        b = data.draw(st.integers(0, len(lines) - 1).filter(lambda k: k != a))
        changed.insert(b, changed.pop(a))
        first = min(a, b) + 1
    assert judged(folder, b"".join(changed)).wrong == first


def test_a_tail_that_is_gone_is_found_by_what_was_witnessed(good: tuple[Path, bytes]) -> None:
    folder, body = good
    lines = body.splitlines(keepends=True)
    short = b"".join(lines[:-1])
    assert judged(folder, short).wrong is None, "by itself it is a ledger, only an older one"
    last = {6: digest(lines[-1].rstrip(b"\n"))}
    found = judged(folder, short, witnessed=last)
    assert found.wrong == 6 and "tail is missing" in found.why
    assert judged(folder, body, witnessed=last).wrong is None
    assert "rewritten" in judged(folder, body, witnessed={3: "0" * 64}).why
    assert judged(folder, body[:-7]).wrong == 6, "torn"
    assert judged(folder, b"").wrong == 1


def test_a_ledger_that_somebody_else_wrote_is_found_by_its_key(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b")
    theirs = verify(tmp_path / "b" / FILE)
    assert theirs.wrong is None
    found = verify(tmp_path / "b" / FILE, key=verify(tmp_path / "a" / FILE).key)
    assert found.wrong == 1 and "another key" in found.why


def test_signatures_in_the_middle_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests alone could be made by anybody."""
    monkeypatch.setattr(audit, "EVERY", 2)
    lines = written(tmp_path).splitlines()
    forged = lines[1].replace(b"number 0", b"number 9")
    rest = [forged]
    for each in lines[2:]:
        rest.append(each[:9] + digest(rest[-1]).encode() + each[73:])
    assert judged(tmp_path, b"\n".join([lines[0], *rest, b""])).wrong == 2


def test_a_clock_that_goes_back_is_told_and_is_no_error(tmp_path: Path) -> None:
    times = iter([50.0, 60.0, 10.0, 70.0])
    ledger = Ledger(tmp_path, node="alice", clock=lambda: next(times))
    for _ in range(3):
        ledger.append(line("x"))
    found = verify(tmp_path / FILE)
    assert found.wrong is None and "back 1 times" in found.notes[0]


def test_a_torn_line_is_taken_away_and_told_of(tmp_path: Path) -> None:
    body = written(tmp_path)
    with (tmp_path / FILE).open("ab") as file:
        file.write(body.splitlines()[-1][:40] + bytes(7))
    ledger = Ledger(tmp_path, node="alice")
    ledger.close()
    assert ledger.torn == 47
    assert (tmp_path / FILE).read_bytes() == body
    assert verify(tmp_path / FILE).wrong is None


def test_an_end_that_this_node_did_not_write_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    body = bytearray(written(tmp_path))
    body[-200] ^= 1
    (tmp_path / FILE).write_bytes(body)
    with pytest.raises(LedgerDamaged):
        Ledger(tmp_path, node="alice")
    assert (tmp_path / FILE).read_bytes() == body


def test_there_is_one_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LOCK_S", 0.0)
    first = Ledger(tmp_path, node="alice")
    with pytest.raises(StateInUse, match="Another guard"):
        Ledger(tmp_path, node="alice")
    first.close()
    Ledger(tmp_path, node="alice").close()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(LedgerError, match="read by others"):
        Ledger(tmp_path, node="alice")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, node="alice")
    before = (tmp_path / FILE).read_bytes()
    for point in POINTS:
        with armed(f"{point}=full"), pytest.raises(LedgerError, match="nothing was sent"):
            ledger.append(line("too much"))
        assert (tmp_path / FILE).read_bytes() == before
    ledger.append(line("again"))
    assert [each.kind for each in entries(tmp_path)] == ["opened", "refusal"]


def test_a_line_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="too long"):
        Ledger(tmp_path, node="alice").append(line("x" * LIMIT_BYTES))


WRITER = """
import sys
from pathlib import Path
from freehold.node.ledger import Ledger
from freehold.node.lines import Line
ledger = Ledger(Path(sys.argv[1]), node="alice")
for index in range(3):
    ledger.append(Line(prev="", n=0, time=0.0, kind="refusal", text=str(index)))
    print(index, flush=True)
"""


@pytest.mark.parametrize("point", [*(f"{p}=kill@{n}" for p in POINTS for n in (1, 3)), *(f"{p}=kill" for p in KEY_POINTS)])
def test_after_a_kill_what_was_acknowledged_is_there(tmp_path: Path, point: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    killed = subprocess.run(command, env={"FREEHOLD_FAILPOINTS": point, **paths()}, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    again = subprocess.run(command, env=paths(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    acknowledged = killed.stdout.split() + again.stdout.split()
    told = [each.text for each in entries(tmp_path) if each.kind == "refusal"]
    assert verify(tmp_path / FILE).wrong is None
    assert len(acknowledged) <= len(told) <= len(acknowledged) + 1 and told[-3:] == ["0", "1", "2"]


def paths() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


def test_a_guard_waits_for_one_that_is_about_to_end(tmp_path: Path) -> None:
    first = Ledger(tmp_path, node="alice")
    threading.Timer(0.1, first.close).start()
    Ledger(tmp_path, node="alice").close()
