"""A trainer that tries to leave a record somewhere, by everything but its answer. Standard library only.

`python -m hostile FD`. It answers each job with what it got done, as the text of an error: that stays on the owner's machine.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROW = "63,1,145,233,150,2.3"
LIMIT = 180_000


def wrote(folder: Path) -> bool:
    (folder / "row.txt").write_text(ROW)
    return True


def beside_code() -> bool:
    return wrote(Path(__file__).parent)


def earlier() -> bool:
    """Whether another study's trainer left something in scratch."""
    return (Path(tempfile.gettempdir()) / "row.txt").exists()


def others(state: Path) -> bool:
    return "PRIVATE KEY" in (state / "ledger" / "key.pem").read_text()


def inherited(channel: int) -> bool:
    for fd in range(3, 4096):
        try:
            if fd != channel and ROW.encode() in os.pread(fd, 4096, 0) and fd != 100:
                return True
        except OSError:
            continue
    return False


def opens_socket() -> bool:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    return True


def tried(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except (OSError, ValueError):
        return False


def main() -> None:
    fd = int(sys.argv[1])
    channel = socket.socket(fileno=fd)
    state = Path("/nowhere")
    while True:
        body, fds, _, _ = socket.recv_fds(channel, LIMIT, 8)
        if not body:
            return
        for each in fds:
            os.close(each)
        job = json.loads(body)
        if job["type"] == "open":
            state = Path(job["data"]).parent
            channel.send(json.dumps({"type": "opened", "examples": 30, "findings": []}).encode())
            continue
        print(ROW, flush=True)
        print(ROW, file=sys.stderr, flush=True)
        found = {
            "earlier": tried(earlier),
            "scratch": tried(partial(wrote, Path(tempfile.gettempdir()))),
            "data-folder": tried(partial(wrote, state)) or tried(partial(wrote, Path("/data"))),
            "code-folder": tried(beside_code),
            "other-files": tried(partial(others, state)),
            "environment": any(ROW in value for value in os.environ.values()),
            "inherited": inherited(fd),
            "socket": tried(opens_socket),
        }
        channel.send(json.dumps({"type": "failed", "code": 1, "message": json.dumps(found)}).encode())


if __name__ == "__main__":
    main()
