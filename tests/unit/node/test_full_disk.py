"""A vault on a disk that is really full, a small one in a mount namespace of the test's own, at every write that it makes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.errors import VaultError
from tests.unit.node.vaults import LARGE, SMALL, Node

PAGE = 4096
DISK_BYTES = 4 << 20
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def possible() -> bool:
    """Whether this user may mount a small disk here, which nobody else sees."""
    try:
        done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not possible(), reason="this user may not mount a small disk here")
@pytest.mark.parametrize("state", ["small", "large"])
def test_a_vault_whose_disk_is_full(tmp_path: Path, state: str) -> None:
    """The round before stays committed, nothing is half there, and with room all goes on."""
    code = f"import sys; from pathlib import Path; from {__name__} import sweep; sweep(Path(sys.argv[1]), sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*UNSHARE, sys.executable, "-c", code, str(tmp_path), state]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"put", "settle", "nothing"}, "from no room at all to room enough"


def sweep(folder: Path, state: str) -> None:
    """Leave more room by and by, a page at a time, until a whole round fits; say what did not."""
    new = LARGE if state == "large" else SMALL
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder], check=True)
    for room in range(0, len(new) + 20 * PAGE, PAGE):
        refused = one_round(folder / str(room), folder / "filler", room, new)
        print(refused)
        subprocess.run(["rm", "-r", folder / str(room)], check=True)


def one_round(place: Path, filler: Path, room: int, new: bytes) -> str:
    """A round with so much room left; what was refused: "put", "settle" or "nothing"."""
    node, before = Node(place), b"before" + new
    node.trained(0, before)
    fill(filler, room)
    refused = "nothing"
    try:
        node.put(1, "next", new)
        try:
            node.settle(1, "next")
        except VaultError:
            refused = "settle"
    except VaultError:
        refused = "put"
    expected = new if refused == "nothing" else before
    assert node.committed() == expected, refused
    filler.unlink()
    for again in (False, True):  # the one that met it, and one that is opened anew
        node = node.anew() if again else node
        assert node.committed() == expected, refused
        assert node.pending() == ([1] if refused == "settle" else []), refused
    if refused == "put":
        node.put(1, "next", new)
    node.settle(1, "next")
    assert node.committed() == new and node.pending() == []
    assert len(node.files()) == (len(new) == len(LARGE)), "no file is left over"
    node.end()
    return refused


def fill(filler: Path, room: int) -> None:
    """Fill the disk up to so many bytes."""
    with filler.open("wb") as file:
        while True:
            free = os.statvfs(filler.parent)
            try:
                return os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - room)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise  # else somebody else wrote meanwhile
