"""The program that the kernel runs at each system call, run here: what it answers on both machines."""

from __future__ import annotations

import errno
import itertools

import pytest

from freehold.sandbox.seccomp import ALLOW, AUDIT_ARCH, CLONE_THREAD, KILL, REFUSE, program
from freehold.sandbox.syscalls import NUMBERS

PID = 7
EPERM, ENOSYS = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
MACHINES = list(NUMBERS)


def answer(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the program returns."""
    words = {0: number, 4: AUDIT_ARCH[machine] if arch is None else arch}
    for index, value in enumerate(itertools.islice(itertools.chain(arguments, itertools.repeat(0)), 6)):
        words[16 + 8 * index], words[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32
    made, at, held = program(machine, PID), 0, 0
    while True:
        code, k, yes, no = made[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            held = words[k]
        else:
            holds = {0x15: held == k, 0x25: held > k, 0x35: held >= k, 0x45: bool(held & k)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOW),
        ("recvmsg", (), ALLOW),
        ("memfd_create", (), ALLOW),
        *((name, (), EPERM) for name in ("socket", "socketpair", "connect", "bind", "execve", "execveat", "ptrace", "bpf")),
        *((name, (), EPERM) for name in ("io_uring_setup", "keyctl", "process_vm_readv", "process_vm_writev", "pidfd_getfd")),
        *((name, (), EPERM) for name in ("perf_event_open", "userfaultfd", "mount", "unshare", "setns", "seccomp")),
        ("clone3", (), ENOSYS),
        ("clone", (CLONE_THREAD | 0x100,), ALLOW),
        ("clone", (17,), EPERM),
        ("clone", (CLONE_THREAD | 0x10000000,), EPERM),
        ("clone", (CLONE_THREAD | 0x40000000,), EPERM),
        ("ioctl", (3, 0x5421), ALLOW),
        ("ioctl", (3, 0x5412), EPERM),
        ("ioctl", (3, 0x1_0000_5412), EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (4,), EPERM),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (PID + 1,), EPERM),
        ("kill", (PID,), ALLOW),
        ("kill", (0xFFFFFFFF,), EPERM),
        ("tgkill", (1,), EPERM),
    ],
)
def test_a_call(machine: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    assert answer(machine, NUMBERS[machine][name], *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_newer_than_the_list_does_not_exist(machine: str) -> None:
    assert answer(machine, 462) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_machine_end_the_process(machine: str) -> None:
    assert answer(machine, 0, arch=0x40000003) == KILL


def test_the_other_calls_of_x86_end_the_process() -> None:
    assert answer("x86_64", 0x40000000) == answer("x86_64", 0x40000000 | 41) == KILL
