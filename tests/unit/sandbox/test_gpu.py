"""Device files are in a jail only where somebody put them there; here regular files stand in for them."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.node.sandboxed import Bounds, _bounded
from freehold.sandbox import gpu
from freehold.sandbox.jail import Jail, jailed
from freehold.sandbox.probe import probe
from freehold.sandbox.trainer_user import trainer_uid

PATIENCE_S = 60.0
INSIDE = """
import os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
told = []
for path in sys.argv[2:]:
    try:
        fd = os.open(path, os.O_RDWR)
        os.write(fd, b"used")
        told.append("used")
    except OSError as error:
        told.append(type(error).__name__)
there = [name for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "dri", "kfd") if os.path.exists(f"/dev/{name}")]
told.append(" ".join(there))
channel.send("|".join(told).encode())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with the module and two stand-ins, which every user may use if they can reach them."""
    with tempfile.TemporaryDirectory(prefix="fh-gpu-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "code").mkdir(mode=0o755)
        (folder / "code" / "inside.py").write_text(INSIDE)
        (folder / "dev" / "dri").mkdir(parents=True)
        for path in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "dri/renderD128", "dri/card0", "sda", "mem"):
            (folder / "dev" / path).write_text("")
            (folder / "dev" / path).chmod(0o666)
        yield folder


def found(jail: Jail, place: Path, *paths: Path) -> list[str]:
    ours, theirs = socket.socketpair()
    jail = replace(jail, code=[*jail.code, str(place / "code")])
    with ours, theirs, jailed("inside", [theirs.fileno()], jail, arguments=list(map(str, paths))) as process:
        theirs.close()
        ours.settimeout(PATIENCE_S)
        told = ours.recv(1 << 12).decode().split("|")
        process.wait(PATIENCE_S)
    return told


def test_only_what_computes_counts_as_a_gpu(place: Path) -> None:
    names = [str(Path(path).relative_to(place / "dev")) for path in gpu.devices(place / "dev")]
    assert names == ["dri/renderD128", "nvidia-uvm", "nvidia0", "nvidiactl"]


@pytest.mark.parametrize("kind", ["bwrap", "alone"])
def test_a_device_is_there_if_it_was_given_and_else_not(kind: str, place: Path) -> None:
    jail = probe(trainer_uid("test")).jail()
    jail = jail if kind == "bwrap" else replace(jail, bwrap=None)
    first, second = place / "dev" / "nvidia0", place / "dev" / "nvidiactl"
    refused = ("FileNotFoundError", "PermissionError")
    closed = found(jail, place, first, second)
    assert closed[0] in refused and closed[1] in refused and first.read_text() == ""
    given = found(replace(jail, devices=[str(first)]), place, first, second)
    assert given[0] == "used" and given[1] in refused
    assert (first.read_text(), second.read_text()) == ("used", "")


def test_by_default_a_trainer_sees_no_gpu_of_this_machine(place: Path) -> None:
    jail = probe(trainer_uid("test")).jail()
    assert not _bounded(jail, Bounds(), None).devices
    if jail.bwrap is not None:
        assert found(jail, place) == [""]


def test_the_owner_gives_all_that_are_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.node.sandboxed.devices", lambda: gpu.devices(place / "dev"))
    jail = _bounded(probe(trainer_uid("test")).jail(), Bounds(gpu=True), None)
    told = found(jail, place, *map(Path, jail.devices))
    assert told[:4] == ["used"] * 4 and len(jail.devices) == 4
    assert os.path.exists(place / "dev" / "dri" / "card0")
