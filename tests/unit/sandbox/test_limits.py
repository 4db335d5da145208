"""What an owner lets a trainer take: held by limits of its process, or by a control group where one is delegated."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.node.sandboxed import Bounds, _bounded
from freehold.sandbox import groups, seccomp
from freehold.sandbox.groups import NODE, Groups, delegated, entered
from freehold.sandbox.jail import Jail, jailed
from freehold.sandbox.probe import probe
from freehold.sandbox.syscalls import NUMBERS
from freehold.sandbox.trainer_user import trainer_uid

PATIENCE_S = 60.0
STEP, MEMORY = 1 << 24, 1 << 28
GREEDY = """
import json, os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
held, told = [], {}
try:
    while len(held) < 64:
        held.append(bytearray(os.urandom(1) * (1 << 24)))
    told["stopped"] = False
except MemoryError:
    told["stopped"] = True
told["steps"], held[:] = len(held), []
told["cpus"] = sorted(os.sched_getaffinity(0))
try:
    os.sched_setaffinity(0, range(os.cpu_count()))
    told["moved"] = True
except OSError as error:
    told["moved"] = False
channel.send(json.dumps(told).encode())
"""


@pytest.fixture
def code() -> Iterator[str]:
    """A folder with the module `greedy`, which every user may read."""
    with tempfile.TemporaryDirectory(prefix="fh-greedy-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "greedy.py").write_text(GREEDY)
        yield name


def told_by(jail: Jail, code: str) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    with ours, theirs, jailed("greedy", [theirs.fileno()], replace(jail, code=[*jail.code, code])) as process:
        theirs.close()
        ours.settimeout(PATIENCE_S)
        told: dict[str, Any] = json.loads(ours.recv(1 << 16))
        process.wait(PATIENCE_S)
    return told


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_a_memory_bomb_ends_at_the_owners_limit(kind: str, code: str) -> None:
    jail = probe(trainer_uid("test")).jail()
    jail = jail if kind == "bwrap" else replace(jail, bwrap=None)
    there = sorted(os.sched_getaffinity(0))
    free = told_by(jail, code)
    assert (free["stopped"], free["steps"], free["cpus"], free["moved"]) == (False, 64, there, True)
    held = told_by(_bounded(jail, Bounds(memory=MEMORY, cpus=1.5), None), code)
    assert held["stopped"] and 1 <= held["steps"] <= MEMORY // STEP
    assert len(held["cpus"]) == 1 and set(held["cpus"]) <= set(there) and not held["moved"]


def test_an_owners_limit_is_never_above_the_usual_one() -> None:
    jail = probe(trainer_uid("test")).jail()
    assert _bounded(jail, Bounds(memory=1 << 60), None).limits == jail.limits
    assert _bounded(jail, Bounds(), None) == jail
    assert seccomp.program("x86_64", 1) != seccomp.program("x86_64", 1, pinned=True)
    number = NUMBERS["x86_64"]["sched_setaffinity"]
    assert not [each for each in seccomp.program("x86_64", 1, pinned=True) if each.k == number]


# Control groups, in a folder that looks like the kernel's.


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A group with one process that was delegated to this user."""
    unit = tmp_path / "system.slice" / "freehold.service"
    unit.mkdir(parents=True)
    for name, text in (("cgroup.controllers", "cpu io memory pids\n"), ("cgroup.procs", "41\n42\n"), ("cgroup.events", "")):
        (unit / name).write_text(text)
    (unit / "cgroup.subtree_control").write_text("")
    (tmp_path / "own").write_text("1:name=systemd:/\n0::/system.slice/freehold.service\n")
    monkeypatch.setattr(groups, "_is_ours", lambda folder: True)
    real = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        for name in ("cgroup.procs", "memory.max", "memory.swap.max", "cpu.max", "pids.max"):  # as the kernel fills it
            if not (self / name).exists():
                (self / name).write_text("")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    return tmp_path


def found(tree: Path) -> Groups | None:
    return delegated(root=tree, own=tree / "own")


def test_a_delegated_group_is_divided(tree: Path) -> None:
    divided, unit = found(tree), tree / "system.slice" / "freehold.service"
    assert divided is not None and divided.folder == unit
    assert (unit / NODE / "cgroup.procs").read_text() == "42"  # each is written by itself; this file shows the last
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    jail = probe(trainer_uid("test")).jail()
    bounded = _bounded(jail, Bounds(memory=MEMORY, cpus=0.5), divided)
    assert bounded.group is not None and bounded.group.parent == unit and bounded.limits.cpus == 0
    told = {name: (bounded.group / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert told == {
        "memory.max": str(MEMORY),
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
        "pids.max": str(jail.limits.processes),
    }


def test_what_is_started_is_born_in_the_group(tree: Path) -> None:
    divided = found(tree)
    assert divided is not None
    group = divided.make(memory_bytes=MEMORY, cpus=None, processes=8)
    with entered(group):
        assert (group / "cgroup.procs").read_text() == str(os.getpid())
    assert (divided.folder / NODE / "cgroup.procs").read_text() == str(os.getpid())


def test_a_guard_that_is_started_anew_finds_the_group_that_was_divided_before(tree: Path) -> None:
    first = found(tree)
    (tree / "own").write_text(f"0::/system.slice/freehold.service/{NODE}\n")
    assert first is not None and found(tree) == first


@pytest.mark.parametrize("lacking", ["own", "controllers", "memory", "delegation", "version 1"])
def test_where_nothing_is_delegated_limits_of_the_process_do(lacking: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tree / "system.slice" / "freehold.service"
    if lacking == "own":
        (tree / "own").unlink()
    elif lacking == "controllers":
        (unit / "cgroup.controllers").unlink()
    elif lacking == "memory":
        (unit / "cgroup.controllers").write_text("cpu pids\n")
    elif lacking == "delegation":
        monkeypatch.setattr(groups, "_is_ours", lambda folder: False)
    else:
        (tree / "own").write_text("4:memory:/docker/1\n0::\n1:name=systemd:/\n")
    assert found(tree) is None
    assert not (unit / NODE).exists()


def test_the_groups_of_this_very_machine_are_not_touched_unless_they_were_delegated() -> None:
    """Root may write to all of them, and must not."""
    if os.getuid() == 0 and not Path("/sys/fs/cgroup/cgroup.events").exists():
        assert delegated() is None
