"""Bundles: equal files have equal digests, and nothing but text files of plain names gets into one, or out of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from freehold.errors import BundleUnfit
from freehold.plan.bundle import LIMIT_BYTES, MOST_FILES, MOST_LINES, changes, digest_of, gather, imported, pack, unpack

TASK = {"task.py": "import torch\nfrom pack.b import x\n\ndef task():\n    import socket\n"}


def digest(files: dict[str, str]) -> str:
    return digest_of(pack(files))


def test_the_digest_is_that_of_paths_and_contents() -> None:
    files = {**TASK, "a.py": "x = 1\n", "pack/b.py": ""}
    found = digest(files)
    assert found == digest(dict(reversed(files.items())))
    others = [
        {**files, "a.py": "x = 2\n"},
        {**files, "c.py": ""},
        {**TASK, "a.py": "x = 1\n"},
        {**TASK, "b.py": "x = 1\n"},
        {**TASK, "pack/b.py": "x = 1\n", "a.py": ""},
    ]
    assert len({found, *map(digest, others)}) == 6
    assert unpack(pack(files), found) == files


@pytest.mark.parametrize(
    "path",
    [
        *("../a.py", "/a.py", "a.sh", "a//b.py", "a.py\n", "", "a/../b.py", "a\\b.py", "a-b.py", ".a.py", "a\x00.py"),
        *("a.py/b.py", "a/" * 9 + "b.py", "a" * 200 + ".py", "ä.py", "TASK.py", "task/__init__.py"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(BundleUnfit):
        pack({**TASK, path: ""})
    body = json.dumps({"files": dict(sorted({**TASK, path: ""}.items())), "format": 1}, separators=(",", ":")).encode()
    with pytest.raises(BundleUnfit):
        unpack(body, digest_of(body))


@pytest.mark.parametrize(
    "files",
    [{}, {"a.py": ""}, {**TASK, **{f"a{i}.txt": "" for i in range(MOST_FILES)}}, {**TASK, "a.txt": "x" * LIMIT_BYTES}],
    ids=["empty", "no task.py", "too many", "too large"],
)
def test_what_is_no_bundle_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(BundleUnfit):
        pack(files)


def test_only_the_one_way_of_writing_it_is_read() -> None:
    body = pack(TASK)
    assert unpack(body, digest_of(body)) == TASK
    with pytest.raises(BundleUnfit, match="digest"):
        unpack(body + b" ", digest_of(body))
    told = json.loads(body)
    for other in (
        body + b"\n",
        json.dumps(told).encode(),
        json.dumps({**told, "more": 1}, separators=(",", ":")).encode(),
        json.dumps({**told, "format": 2}, separators=(",", ":")).encode(),
        body.replace(b'{"files":{', b'{"files":{"task.py":"",'),
        body.replace(b"import", b"\\ud800import"),
        b"[" * 100_000,
        b'{"files":{"task.py":1},"format":1}',
        b"\xff",
        b"",
    ):
        with pytest.raises(BundleUnfit):
            unpack(other, digest_of(other))


def test_a_folder_is_gathered_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "pack" / "__pycache__").mkdir(parents=True)
    (tmp_path / "task.py").write_text("def task(): ...\n")
    (tmp_path / "pack" / "b.py").write_text("")
    (tmp_path / "pack" / "__pycache__" / "b.pyc").write_bytes(b"\x00")
    (tmp_path / ".env").write_text("SECRET=1")
    assert gather(tmp_path) == {"task.py": "def task(): ...\n", "pack/b.py": ""}


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "weights", "latin", "stdlib", "large"])
def test_a_folder_with_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "task.py").write_text("")
    (tmp_path / "outside.py").write_text("secret")
    if kind == "link":
        (folder / "a.py").symlink_to(tmp_path / "outside.py")
    elif kind == "folder link":
        (folder / "a").symlink_to(tmp_path)
    elif kind == "fifo":
        os.mkfifo(folder / "a.py")
    elif kind == "weights":
        (folder / "model.safetensors").write_bytes(b"\x00")
    elif kind == "latin":
        (folder / "a.txt").write_bytes(b"\xe4")
    elif kind == "stdlib":
        (folder / "socket.py").write_text("")
    else:
        (folder / "a.txt").write_bytes(b"x" * (LIMIT_BYTES + 1))
    with pytest.raises(BundleUnfit):
        gather(folder)


def test_what_changed_is_told_file_by_file() -> None:
    after = {"task.py": TASK["task.py"].replace("socket", "math"), "new.py": "x = 1\n"}
    told = changes({**TASK, "old.py": "y = 2\n"}, after)
    heads = [line for line in told if line[0] not in "@ "]
    assert heads[:5] == ["new: new.py", "+x = 1", "gone: old.py", "-y = 2", "changed: task.py"]
    assert "-    import socket" in told and "+    import math" in told
    assert changes(TASK, TASK) == []
    assert len(changes({}, {"a.txt": "x\n" * (2 * MOST_LINES)})) == MOST_LINES + 1


def test_imports_are_listed_for_who_has_to_read_the_code() -> None:
    files = {**TASK, "pack/b.py": "  from os.path import join\n", "a.txt": "import subprocess"}
    assert imported(files) == ["os", "socket", "torch"]
