"""Control groups (version 2): the memory and processors of a whole jail, where whoever started this process delegated them.

systemd does with `Delegate=yes`. Nothing is delegated in most containers and sessions: limits of each process then have to do.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
NODE: Final = "freehold-node"
"""Where the node's own processes are moved: a group that divides its resources may not have any itself."""

_NEEDED: Final = ("memory", "cpu", "pids")
_PERIOD_US: Final = 100_000
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A delegated group, below which there is one for each jail."""

    folder: Path

    def make(self, *, memory_bytes: int, cpus: float | None, processes: int) -> Path:
        """A new group with these limits; those whose jails have ended are removed. Raises OSError."""
        for old in self.folder.glob("trainer-*"):
            with contextlib.suppress(OSError):  # somebody is in it
                old.rmdir()
        group = self.folder / f"trainer-{os.getpid()}-{next(_numbers)}"
        group.mkdir()
        _write(group / "memory.max", str(memory_bytes))
        _write(group / "pids.max", str(processes))
        if cpus is not None:
            _write(group / "cpu.max", f"{max(int(cpus * _PERIOD_US), 1000)} {_PERIOD_US}")
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting, or before 4.19
                _write(group / name, value)
        return group


def delegated(*, root: Path = ROOT, own: Path = OWN) -> Groups | None:
    """The group that this process may divide, made ready for it; None where there is none."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
        place = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
        folder = root / place.lstrip("/")
        if folder.name == NODE:  # moved there by a guard before this one
            folder = folder.parent
        if not _is_ours(folder):
            return None
        known = (folder / "cgroup.controllers").read_text(encoding="ascii").split()
        if not set(_NEEDED) <= set(known):
            return None
        leaf = folder / NODE
        leaf.mkdir(exist_ok=True)
        for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                _write(leaf / "cgroup.procs", pid)
        _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in _NEEDED))
    except (OSError, StopIteration, UnicodeDecodeError):
        return None
    return Groups(folder=folder)


@contextlib.contextmanager
def entered(group: Path | None) -> Iterator[None]:
    """What is started in this block is born in the group; this process itself is there meanwhile. Raises OSError."""
    if group is None:
        yield
        return
    _write(group / "cgroup.procs", str(os.getpid()))
    try:
        yield
    finally:
        _write(group.parent / NODE / "cgroup.procs", str(os.getpid()))


def _is_ours(folder: Path) -> bool:
    """Whether it was delegated: root may write to all groups, also to those that somebody else manages."""
    if not (folder / "cgroup.events").exists() or not os.access(folder, os.W_OK):  # the root of all groups has no events
        return False
    if os.getuid() != 0:
        return os.access(folder / "cgroup.subtree_control", os.W_OK)
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
