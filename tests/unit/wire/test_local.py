from __future__ import annotations

import mmap
import os
import subprocess
import sys

import msgspec
import pytest

from freehold.errors import PeerGone
from freehold.wire import local


class Note(msgspec.Struct):
    text: str


def test_messages_and_descriptors_reach_the_other_process() -> None:
    ours, theirs = local.pair()
    code = (
        "import sys\nfrom freehold.wire import local\nimport msgspec\n"
        "channel = local.channel_from(int(sys.argv[1]))\n"
        "message, fds = channel.receive(dict, timeout_s=20)\n"
        "class Note(msgspec.Struct):\n    text: str\n"
        "assert local.is_sealed(fds[0])\n"
        "channel.send(Note(text=message['text'] + ' ' + local.read(fds[0]).decode()))\n"
        "local.close(fds)\nchannel.close()\n"
    )
    fd = local.sealed(b"world", "test")
    with theirs, subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()]) as child:
        ours.send(Note(text="hello"), [fd])
        assert ours.receive(Note, timeout_s=20) == (Note(text="hello world"), [])
        assert child.wait(20) == 0
    local.close([fd])
    with pytest.raises(PeerGone):
        ours.receive(Note, timeout_s=20)
    ours.close()


def test_sealed_memory_cannot_be_changed_in_any_way() -> None:
    fd = local.sealed(b"secret", "test")
    assert local.is_sealed(fd)
    for change in (
        lambda: os.write(fd, b"x"),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 100),
        lambda: mmap.mmap(fd, 6),
    ):
        with pytest.raises(PermissionError):
            change()
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    with local.Mapped(fd) as view:
        assert view == b"secret"
        with pytest.raises(TypeError):
            view[0] = 0
    local.close([fd, again])


def test_memory_that_can_be_changed_is_told_from_sealed_memory() -> None:
    memory = local.Memory("test")
    memory.write(b"ab")
    memory.write(memoryview(b"cd"))
    assert not local.is_sealed(memory.fd)
    read_end, write_end = os.pipe()
    assert not local.is_sealed(read_end)
    assert local.read(memory.seal()) == b"abcd"
    local.close([memory.fd, read_end, write_end])


def test_a_message_that_is_another_or_too_long_is_refused() -> None:
    ours, end = local.pair()
    theirs = local.Channel(end)
    fd = local.sealed(b"x", "test")
    open_before = len(os.listdir("/proc/self/fd"))
    theirs.send(Note(text="x"), [fd])
    with pytest.raises(msgspec.ValidationError):
        ours.receive(int, timeout_s=20)
    assert len(os.listdir("/proc/self/fd")) == open_before
    with pytest.raises(ValueError, match="bytes"):
        theirs.send(Note(text="x" * local.LIMIT_BYTES))
    with pytest.raises(TimeoutError):
        ours.receive(Note, timeout_s=0.01)
    ours.close()
    with pytest.raises(PeerGone):
        theirs.send(Note(text="x"))
    theirs.close()
    local.close([fd])


def test_empty_memory_is_read_as_nothing() -> None:
    fd = local.sealed(b"", "test")
    assert local.read(fd) == b""
    local.close([fd])
