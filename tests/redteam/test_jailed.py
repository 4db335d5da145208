"""What a real jail stops under a real guard; without the jail the same trainer gets all of it done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.node.errands import Refused
from freehold.sandbox.jail import jailed
from freehold.sandbox.probe import probe
from freehold.sandbox.trainer_user import trainer_uid
from tests.redteam import hostile
from tests.redteam.channels import shows
from tests.redteam.stage import ROW, Stage, plan_of, stopped

Spawn = Callable[[str, int], "subprocess.Popen[bytes]"]
FIRST, SECOND = plan_of("first"), plan_of("second")


@pytest.fixture
def code() -> Iterator[Path]:
    """A folder with the trainer, which every user may read, also one who is not root."""
    with tempfile.TemporaryDirectory(prefix="fh-hostile-") as name:
        Path(name).chmod(0o755)
        shutil.copy(hostile.__file__, name)
        yield Path(name)


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the guard's environment, and in a file that it has open and would pass on."""
    monkeypatch.setenv("NODE_SECRET", ROW)
    path = tmp_path / "secret"
    path.write_text(ROW)
    fd = os.open(path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield
    os.close(fd)


def in_jail(code: Path) -> Spawn:
    jail = probe(trainer_uid("redteam")).jail()
    return lambda module, fd: jailed("hostile", [fd], replace(jail, code=[*jail.code, str(code)]))


def outside(code: Path, scratch: Path) -> Spawn:
    environ = {**os.environ, "PYTHONPATH": str(code), "TMPDIR": str(scratch)}

    def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
        os.set_inheritable(fd, True)
        return subprocess.Popen([sys.executable, "-m", "hostile", str(fd)], env=environ, close_fds=False, cwd=scratch)

    return spawn


def done(folder: Path, spawn: Spawn) -> tuple[dict[str, bool], dict[str, bool], Stage]:
    """What the trainer of one study, then that of another one, got done."""
    stage = Stage(folder, FIRST, spawn=spawn)
    with closing(stage):
        found = []
        for plan in (FIRST, SECOND):
            left = stage.train(0, plan)
            stopped(stage, left, 306)
            assert isinstance(left.reply, Refused)
            found.append(json.loads(left.reply.message.partition(" ")[2]))
    return found[0], found[1], stage


@shows("stdout", "stderr", "scratch", "data-folder", "code-folder", "other-files", "environment", "inherited", "socket")
@pytest.mark.usefixtures("secrets")
def test_a_jail_leaves_its_answer_and_the_owner_s_log(code: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second, stage = done(tmp_path / "node", in_jail(code))
    level = probe(trainer_uid("redteam")).level
    assert first == {name: name == "scratch" and level != "basic" for name in first}, "its own scratch, where there is one"
    assert second == first, "and nothing of another study's"
    told = capfd.readouterr()
    assert ROW not in told.out and ROW in told.err
    assert not list(stage.folder.rglob("row.txt")) and not (code / "row.txt").exists()
    assert stage.table.read_text() == f"age,sex,bp\n{ROW}\n"


@pytest.mark.usefixtures("secrets")
def test_without_a_jail_the_same_trainer_gets_all_of_it_done(
    code: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    first, second, stage = done(tmp_path / "node", outside(code, scratch))
    assert first == {name: name != "earlier" for name in first}
    assert second == dict.fromkeys(first, True), "and finds what the other study left"
    assert ROW in capfd.readouterr().out
    assert (stage.folder / "row.txt").exists() and (code / "row.txt").exists()
