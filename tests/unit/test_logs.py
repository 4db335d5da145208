"""Log lines: JSON, readable, and the journal's own protocol."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path

from freehold.events import Event
from freehold.logs import as_text, form_for, listener

CLOSED = Event("round.closed", {"round": 7, "heard": 3})
HOSTILE = Event("work.refused", {"reason": "a\x1b[31m\nMESSAGE=forged"})


def test_an_event_is_one_line_of_json() -> None:
    out = io.StringIO()
    listener(out, "json")(CLOSED)
    told = json.loads(out.getvalue())
    assert out.getvalue().endswith("}\n")
    assert {k: told[k] for k in ("level", "event", "round", "heard")} == {
        "level": "info",
        "event": "round.closed",
        "round": 7,
        "heard": 3,
    }


def test_a_field_cannot_steer_a_terminal_or_begin_a_line() -> None:
    line = as_text(HOSTILE, 0.0)
    assert line.isprintable()


def test_the_journal_gets_fields_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(path))
        log = listener(io.StringIO(), "journal", journal=str(path))
        log(CLOSED)
        log(HOSTILE)
        first, second = (reader.recv(4096).decode() for _ in range(2))
    assert "FREEHOLD_ROUND=7\n" in first
    assert "PRIORITY=6\n" in first
    assert "PRIORITY=4\n" in second
    assert not [line for line in second.splitlines() if line.startswith("MESSAGE=forged")]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    listener(io.StringIO(), "journal", journal=str(tmp_path / "nobody"))(CLOSED)
    closed = io.StringIO()
    closed.close()
    listener(closed, "json")(CLOSED)


def test_the_form_is_as_wanted_and_json_off_a_terminal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert form_for(file, {}) == "json"
        assert form_for(file, {}, wanted="plain") == "plain"
        found = os.fstat(file.fileno())
        there = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert form_for(file, {"JOURNAL_STREAM": "1:1"}) == "json"
        assert form_for(file, there, wanted="json") == "json"
