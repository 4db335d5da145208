"""Whether this machine's connection is metered, as NetworkManager says. It is asked by the programs that each distribution has
for D-Bus; where there is neither, or no NetworkManager, the connection counts as not metered.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

KEPT_S = 60.0
"""An answer holds for so long: a program is started at most once a minute."""

LIMIT_S = 5.0

NAME, PATH, PROPERTY = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "Metered"
YES = ("1", "3")
"""NMMetered: 1 yes, 3 guessed yes (a phone's hot spot), 0 unknown, 2 no, 4 guessed no."""

# Neither may start a NetworkManager that its owner has stopped. nmcli tells of single devices, not of the way out.
PROGRAMS = (
    ("busctl", "--system", "--auto-start=no", "--timeout=3", "get-property", NAME, PATH, NAME, PROPERTY),
    (
        "dbus-send",
        "--system",
        "--print-reply=literal",
        "--reply-timeout=3000",
        f"--dest={NAME}",
        PATH,
        "org.freedesktop.DBus.Properties.Get",
        f"string:{NAME}",
        f"string:{PROPERTY}",
    ),
)


class Metered:
    """Whether the connection is metered, looked up at most once a minute."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: float | None = None
        self._found = False

    def __call__(self) -> bool:
        """Whether it is, as far as anybody knows."""
        now = self._clock()
        if self._asked is None or now - self._asked >= KEPT_S:
            self._asked, self._found = now, ask()
        return self._found


def ask() -> bool:
    """Ask now: the first program that gives an answer counts."""
    for command in PROGRAMS:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(r"\b(?:u|uint32) (\d+)\s*$", done.stdout)
        if done.returncode == 0 and found:
            return found[1] in YES
    return False
