"""Named places at which a test makes a process die, fail or wait; in production they cost a dictionary lookup.

`FREEHOLD_FAILPOINTS="coordinator.contribution.committed=kill@2,node.pending.writing=full"`: the second time the first is
reached, the process is killed as by `kill -9`; each time the second is reached, the disk is full.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

VARIABLE = "FREEHOLD_FAILPOINTS"


def _parse(text: str) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for entry in filter(None, text.split(",")):
        name, _, action = entry.partition("=")
        action, _, count = action.partition("@")
        found[name] = (action, int(count or 0))
    return found


_armed = _parse(os.environ.get(VARIABLE, ""))
_reached: dict[str, int] = {}


def arm(text: str) -> None:
    """Read the variable's text anew, in a process that was forked."""
    _armed.clear()
    _armed.update(_parse(text))
    _reached.clear()


def failpoint(name: str) -> None:
    """Do what the environment says about `name`: nothing, in production.

    Actions: `kill`; `full` raises the OSError of a full disk; `hold:PATH` writes the process's number to PATH and waits until
    that is gone. `@n`: only the n-th time.
    """
    if name not in _armed:
        return
    action, at = _armed[name]
    _reached[name] = _reached.get(name, 0) + 1
    if at and _reached[name] != at:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(128 + signal.SIGKILL)  # in a jail: the first process of a namespace cannot kill itself
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action.startswith("hold:"):
        path = Path(action.removeprefix("hold:"))
        path.write_text(str(os.getpid()), encoding="ascii")
        while path.exists():
            time.sleep(0.005)
