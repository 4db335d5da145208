"""The program as an operator and a data owner run it: `freehold …`, until it has said what the test waits for."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import warm

PATIENCE_S = 120.0


@contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder, gone afterwards, whose path is short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="fh-") as name:
        yield Path(name)


def environment(home: Path) -> dict[str, str]:
    """Nothing outside `home` is written, and children can be told by it."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return os.environ | {
        "XDG_STATE_HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "TMPDIR": str(home / "tmp"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }


def freehold(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return warm.run([str(argument) for argument in arguments], environment(home), timeout_s=PATIENCE_S)


class Running:
    """A command that goes on, and the lines that it writes."""

    def __init__(self, home: Path, *arguments: str | Path, module: str = "freehold.cli") -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(home),
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str) -> str:
        """The next line with that text."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"no {text!r} within {PATIENCE_S} s, but {''.join(self.seen)}") from None
            assert line is not None, f"it ended before {text!r}: {''.join(self.seen)}"
            self.seen.append(line)
            if text in line:
                return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it and all that hold its output have ended."""
        code = self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


def left_behind(home: Path) -> list[int]:
    """Processes that were started with `environment(home)` and still run."""
    mark = f"TMPDIR={home / 'tmp'}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0") and (path / "stat").read_text().split(") ")[1][0] != "Z":
                found.append(int(path.name))
        except OSError:
            continue  # it has ended meanwhile, or is somebody else's
    return found
