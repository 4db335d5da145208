"""Events as log lines: JSON for machines, readable for people, and native fields for the journal of systemd.

Standard library only, since the node's agent logs too. An event never has data, parameters or secrets in its fields.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Literal, TextIO

from freehold.events import Event, Listener

Form = Literal["json", "plain", "journal"]

JOURNAL = "/run/systemd/journal/socket"
_WARNINGS = ("refused", "failed", "unreachable", "short", "not_renewed", "declined")
_COLORS = {"error": "31", "warning": "33", "info": "32"}


def form_for(stream: TextIO, environ: Mapping[str, str], *, wanted: str = "") -> Form:
    """How to log to `stream`: as wanted, else fields for a journal that reads it, lines on a terminal, and JSON elsewhere."""
    if wanted in ("json", "plain"):
        return "json" if wanted == "json" else "plain"
    if _is_journal(stream, environ.get("JOURNAL_STREAM", "")) and os.path.exists(JOURNAL):
        return "journal"
    return "plain" if stream.isatty() else "json"


def listener(stream: TextIO, form: Form, *, color: bool = False, journal: str = JOURNAL) -> Listener:
    """A listener that writes each event at once. An event that cannot be written is lost: logging never stops the work."""
    if form == "journal":
        return _to_journal(journal)

    def listen(event: Event) -> None:
        now = time.time()
        line = as_json(event, now) if form == "json" else as_text(event, now, color=color)
        with contextlib.suppress(OSError, ValueError):
            stream.write(line + "\n")
            stream.flush()

    return listen


def severity(event: Event) -> Literal["error", "warning", "info"]:
    """How bad it is, by the event's verb."""
    verb = event.name.rpartition(".")[2]
    return "error" if verb == "error" else "warning" if verb in _WARNINGS else "info"


def as_json(event: Event, now: float) -> str:
    """One line: time (Unix, seconds), level, event, and the fields as they are."""
    return json.dumps(
        {"time": round(now, 3), "level": severity(event), "event": event.name, **event.fields}, ensure_ascii=False, default=str
    )


def as_text(event: Event, now: float, *, color: bool = False) -> str:
    """One line for people; control characters in fields are replaced."""
    stamp = time.strftime("%H:%M:%S", time.localtime(now))
    name = f"{event.name:<22}"
    if color:
        name = f"\x1b[{_COLORS[severity(event)]}m{name}\x1b[0m"
    fields = " ".join(f"{key}={_shown(value)}" for key, value in event.fields.items())
    return f"{stamp}  {name} {fields}".rstrip()


def as_journal(event: Event) -> bytes:
    """The native protocol of the journal: the message, its priority, and each field as FREEHOLD_NAME."""
    fields = {
        "MESSAGE": " ".join([event.name, *(f"{key}={_shown(value)}" for key, value in event.fields.items())]),
        "PRIORITY": {"error": "3", "warning": "4", "info": "6"}[severity(event)],
        "SYSLOG_IDENTIFIER": "freehold",
        "FREEHOLD_EVENT": event.name,
    }
    fields |= {f"FREEHOLD_{key.upper()}": _shown(value) for key, value in event.fields.items()}
    return "".join(f"{key}={value}\n" for key, value in fields.items()).encode()


def _to_journal(path: str) -> Listener:
    def listen(event: Event) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(as_journal(event), path)

    return listen


def _is_journal(stream: TextIO, said: str) -> bool:
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return said == f"{found.st_dev}:{found.st_ino}"


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
