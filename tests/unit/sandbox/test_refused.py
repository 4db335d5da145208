"""What training code may not do in a jail, and what its owner is told of it; and that a test can kill it there."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold import failpoints
from freehold.node.jobs import Failed, FromTrainer
from freehold.node.trainer import SANDBOXED, hint_of
from freehold.sandbox.jail import Jail, jailed
from freehold.sandbox.probe import probe
from freehold.sandbox.trainer_user import trainer_uid
from freehold.wire.process import Child

PATIENCE_S = 240.0
CODE = """
import sys
from freehold.node.jobs import MeasureJob
from freehold.node.trainer import serve
from freehold.wire.local import channel_from

def compiled():
    import torch
    torch.compile(torch.nn.Linear(2, 2))(torch.ones(1, 2))

def loaded():
    from torch.utils.data import DataLoader
    list(DataLoader([1.0, 2.0], num_workers=1))

def wrong():
    {}["row 7"]

def answer(job, fds):
    (compiled, loaded, wrong)[job.number]()

serve(channel_from(int(sys.argv[1])), answer)
"""
KILLED = """
import socket, sys
from freehold.failpoints import failpoint
channel = socket.socket(fileno=int(sys.argv[1]))
channel.send(b"began")
failpoint("trainer.answering")
channel.send(b"went on")
"""


@pytest.fixture
def code() -> Iterator[str]:
    """A folder with the modules, which every user may read."""
    with tempfile.TemporaryDirectory(prefix="fh-refused-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "refused.py").write_text(CODE)
        (folder / "killed.py").write_text(KILLED)
        yield name


def the_jail(kind: str, code: str, **environ: str) -> Jail:
    jail = probe(trainer_uid("test")).jail()
    return replace(jail, bwrap=jail.bwrap if kind == "bwrap" else None, code=[*jail.code, code], environ=environ)


def test_the_owner_is_told_that_the_sandbox_refuses_it(code: str) -> None:
    from freehold.node.jobs import MeasureJob

    jail = the_jail("bwrap", code)
    child = Child("refused", FromTrainer, spawn=lambda module, fd: jailed(module, [fd], jail))
    try:
        hints = []
        for number in range(3):
            reply, _ = child.ask(MeasureJob(number=number, round=0), timeout_s=PATIENCE_S, restarts=0)
            assert isinstance(reply, Failed) and reply.code == 306 and "row 7" not in reply.message
            hints.append(reply.hint)
    finally:
        child.end()
    assert hints == [SANDBOXED, SANDBOXED, ""]


def test_an_error_that_came_from_what_was_refused_counts_too() -> None:
    try:
        try:
            raise PermissionError(1, "Operation not permitted")
        except PermissionError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        assert hint_of(error) == SANDBOXED
    assert hint_of(FileNotFoundError(2, "no")) == "" and hint_of(ValueError()) == ""


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_a_failpoint_kills_the_first_process_of_a_jail(kind: str, code: str) -> None:
    ours, theirs = socket.socketpair()
    jail = the_jail(kind, code, **{failpoints.VARIABLE: "trainer.answering=kill"})
    with ours, theirs, jailed("killed", [theirs.fileno()], jail) as process:
        theirs.close()
        ours.settimeout(PATIENCE_S)
        assert ours.recv(16) == b"began"
        assert ours.recv(16) == b""
        assert process.wait(PATIENCE_S) in (137, -9)
