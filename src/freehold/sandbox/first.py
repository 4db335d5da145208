"""The first program inside of a jail. It is trusted: it closes what is still open, then becomes the module that isn't.

`python -I first.py CONFIG`: a `Config` as JSON. The same process goes on, so that nothing of the module, and no library that it
imports, is ever loaded outside.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
from typing import Any, NamedTuple

DATA_FD = 100
"""Of that copy, once the jail is closed."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Config(NamedTuple):
    """What `first` is told by whoever built the jail. No dataclass: what that imports takes longer than all else here."""

    module: str
    arguments: list[str]
    imports: list[str]
    """Folders of `sys.path`."""
    readable: list[str]
    writable: list[str]
    limits: dict[str, int]
    alone: bool
    """Whether it is in namespaces of its own."""
    parent: int
    """Who started it; 0 where bwrap ends it with that process."""
    data_fd: int
    """Descriptor of a copy of the table, -1 if there is none."""
    devices: list[str]
    """Device files that it may use."""
    layers: list[str]
    """Which of "seccomp", "landlock" and "limits" to set."""

    def encoded(self) -> str:
        """As JSON."""
        return json.dumps(self._asdict())


def close_jail(config: Config) -> None:
    """Set limits, Landlock and the list of system calls, in this order: each one needs what the next one forbids."""
    from freehold.sandbox import landlock, seccomp
    from freehold.sandbox.limits import Limits, apply

    if config.parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != config.parent:
            os._exit(1)
    if config.data_fd >= 0:
        os.dup2(config.data_fd, DATA_FD)
        os.close(config.data_fd)
    if "limits" in config.layers:
        apply(Limits(**config.limits), alone=config.alone, devices=bool(config.devices))
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if "landlock" in config.layers:
        landlock.restrict(readable=config.readable, writable=config.writable, devices=config.devices)
    if "seccomp" in config.layers:
        seccomp.install(pinned=bool(config.limits["cpus"]), devices=bool(config.devices))


def main() -> None:
    """Close the jail and run the module."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    sys.path[:] = [*told["imports"], *(path for path in sys.path if path not in told["imports"])]
    sys.dont_write_bytecode = True
    config = Config(**told)
    close_jail(config)
    sys.argv = [config.module, *config.arguments]
    runpy.run_module(config.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
