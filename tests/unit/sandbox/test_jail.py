"""What jails end with, what they see, and whose they are."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.sandbox.jail import Jail, data_path, jailed
from freehold.sandbox.limits import usual
from freehold.sandbox.probe import probe
from freehold.sandbox.trainer_user import trainer_uid

PATIENCE_S = 60.0
WHOLE = "0 0 4294967295\n"

INSIDE = """
import os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
said = open(sys.argv[2]).read() if len(sys.argv) > 2 else ""
channel.send(f"{os.getuid()} {said}".encode())
channel.recv(1)
"""
GUARD = """
import signal, socket, sys
from pathlib import Path
from dataclasses import replace
from freehold.sandbox.jail import jailed
from freehold.sandbox.probe import probe
from freehold.sandbox.trainer_user import trainer_uid
jail = probe(trainer_uid("test")).jail()
if sys.argv[2] == "alone":
    jail = replace(jail, bwrap=None)
jailed("inside", [int(sys.argv[1])], replace(jail, code=[*jail.code, sys.argv[3]]))
signal.pause()
"""


@pytest.fixture
def code() -> Iterator[str]:
    """A folder with the module `inside`, which every user may read."""
    with tempfile.TemporaryDirectory(prefix="fh-inside-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "inside.py").write_text(INSIDE)
        yield name


def the_jail(kind: str, code: str) -> Jail:
    jail = probe(trainer_uid("test")).jail()
    return replace(jail, bwrap=jail.bwrap if kind == "bwrap" else None, code=[*jail.code, code])


def gone(end: socket.socket) -> bool:
    """Whether the other end closes soon: no process holds it any more."""
    end.settimeout(PATIENCE_S)
    return end.recv(1) == b""


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_a_table_that_only_the_owner_may_read_is_there_and_the_user_is_not_root(kind: str, code: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    table.chmod(0o600)
    jail = replace(the_jail(kind, code), data=table)
    ours, theirs = socket.socketpair()
    with ours, theirs, jailed("inside", [theirs.fileno()], jail, arguments=[data_path(jail)]) as process:
        theirs.close()
        ours.settimeout(PATIENCE_S)
        uid, said = ours.recv(100).decode().split(" ", 1)
        ours.send(b".")
        assert process.wait(PATIENCE_S) == 0
    assert said == "a,b\n1,2\n"
    assert int(uid) != 0


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_what_is_killed_leaves_nothing_behind(kind: str, code: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = jailed("inside", [theirs.fileno()], the_jail(kind, code))
        theirs.close()
        assert ours.recv(100)
        process.kill()
        process.wait()
        assert gone(ours)


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_a_jail_dies_with_the_guard_that_made_it(kind: str, code: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", GUARD, str(theirs.fileno()), kind, code]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as guard:
            theirs.close()
            assert select.select([ours], [], [], PATIENCE_S)[0] and ours.recv(100)
            guard.send_signal(signal.SIGKILL)
        assert gone(ours)


def test_the_user_of_a_trainer() -> None:
    assert trainer_uid("a", uid=1000) is None
    first, second = (trainer_uid(seed, uid=0, uid_map=WHOLE) for seed in "ab")
    assert first is not None and second is not None and first != second and min(first, second) >= 2_000_000_000
    few = trainer_uid("a", uid=0, uid_map="0 100000 65536\n")
    assert few is not None and 64_000 <= few < 65_534
    one = trainer_uid("a", uid=0, uid_map="0 1000 1\n")
    assert one is not None and one > 0


def test_without_bubblewrap_the_level_says_what_would_help(tmp_path: Path) -> None:
    found = probe(trainer_uid("test"), search=str(tmp_path))
    assert found.level == "basic" and "apt-get install bubblewrap" in found.why[0]
    assert found.jail().bwrap is None


def test_a_bubblewrap_that_may_not_make_namespaces_is_not_used(tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    fake.chmod(0o755)
    found = probe(trainer_uid("test"), search=str(tmp_path))
    assert found.level == "basic" and "AppArmor" in " ".join(found.why)


def test_nothing_to_build_it_from_is_level_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("freehold.sandbox.seccomp.supported", lambda: False)
    found = probe(None, search=str(tmp_path))
    assert found.level == "none" and "seccomp" in found.why[0]
    with pytest.raises(ValueError, match="no such jail"):
        found.jail(usual())
