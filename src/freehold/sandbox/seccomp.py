"""The system calls that a trainer may make, as a program that the kernel runs at each of them.

It is installed from inside by `first`, not handed to bwrap: there it would have to allow what starting Python and closing the
jail still need (execve, Landlock), and the fallback without bwrap would need another one.
Once installed it stays, for all threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from freehold.sandbox.syscalls import ALLOWED, NEWEST, NUMBERS

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
REFUSE: Final = 0x00050000
"""With an errno in the lower half."""

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT: Final = 0x40000000

CLONE_THREAD: Final = 0x00010000
CLONE_NEW: Final = 0x7E020000 | 0x00000080
"""Every CLONE_NEW* flag: namespaces of mounts, cgroups, hosts, IPC, users, processes, networks and clocks."""

IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: whether it is a terminal, how much there is, how to wait."""

PRCTLS: Final = (3, 15, 16, 23, 0x53564D41)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_VMA."""

_LD, _JEQ, _JGT, _JSET, _JGE, _RET = 0x20, 0x15, 0x25, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC = 38, {"x86_64": 317, "aarch64": 277}, 1, 1


class Instruction(NamedTuple):
    """One of classic BPF: `yes` and `no` are how many instructions a jump skips."""

    code: int
    k: int
    yes: int = 0
    no: int = 0


def program(machine: str, pid: int, *, pinned: bool = False, devices: bool = False) -> list[Instruction]:
    """For the process that knows itself as `pid`; KeyError for another machine than x86_64 or aarch64.

    `pinned`: it may not choose the processors that it runs on. `devices`: whatever a driver takes by ioctl is let through,
    since its requests cannot be listed; which devices there are is for mounts and Landlock to say.
    """
    numbers = NUMBERS[machine]
    out = [
        Instruction(_LD, _ARCH_AT),
        Instruction(_JEQ, AUDIT_ARCH[machine], 1, 0),
        Instruction(_RET, KILL),
        Instruction(_LD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        out += [Instruction(_JGE, X32_BIT, 0, 1), Instruction(_RET, KILL)]
    for name in ALLOWED:
        if name in numbers and not (pinned and name == "sched_setaffinity"):
            out += [Instruction(_JEQ, numbers[name], 0, 1), Instruction(_RET, ALLOW)]
    out += _threads_only(numbers["clone"])
    ioctl = numbers["ioctl"]
    out += [Instruction(_JEQ, ioctl, 0, 1), Instruction(_RET, ALLOW)] if devices else _one_of(ioctl, 1, IOCTLS)
    out += _one_of(numbers["prctl"], 0, PRCTLS)
    out += _one_of(numbers["prlimit64"], 0, (0, pid))
    for name in ("kill", "tkill", "tgkill"):
        # A thread of its own is not foreseen for tkill: glibc has not used that call since tgkill came.
        out += _one_of(numbers[name], 0, (pid,))
    # The flags of clone3 are in memory, where no filter can see them; glibc then uses clone.
    out += [Instruction(_JEQ, numbers["clone3"], 0, 1), Instruction(_RET, REFUSE | errno.ENOSYS)]
    out += [Instruction(_JGT, NEWEST, 0, 1), Instruction(_RET, REFUSE | errno.ENOSYS)]
    return [*out, Instruction(_RET, REFUSE | errno.EPERM)]


def _threads_only(number: int) -> list[Instruction]:
    """Threads, but no processes and no namespaces."""
    inside = [
        Instruction(_LD, _ARGUMENTS_AT),
        Instruction(_JSET, CLONE_NEW, 2, 0),
        Instruction(_JSET, CLONE_THREAD, 0, 1),
        Instruction(_RET, ALLOW),
        Instruction(_RET, REFUSE | errno.EPERM),
    ]
    return [Instruction(_JEQ, number, 0, len(inside)), *inside]


def _one_of(number: int, argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """The call, if the lower half of this argument is one of these values: the kernel reads no more of it."""
    inside = [Instruction(_LD, _ARGUMENTS_AT + 8 * argument)]
    for value in values:
        inside += [Instruction(_JEQ, value & 0xFFFFFFFF, 0, 1), Instruction(_RET, ALLOW)]
    inside.append(Instruction(_RET, REFUSE | errno.EPERM))
    return [Instruction(_JEQ, number, 0, len(inside)), *inside]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def supported() -> bool:
    """Whether there is a list for this machine, and the kernel takes one."""
    if os.uname().machine not in NUMBERS:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    action = ctypes.c_uint32(REFUSE)
    return bool(libc.syscall(_SECCOMP[os.uname().machine], 2, 0, ctypes.byref(action)) == 0)  # SECCOMP_GET_ACTION_AVAIL


def install(*, pinned: bool = False, devices: bool = False) -> None:
    """From now on, for every thread of this process and whatever it starts; raises OSError."""
    machine = os.uname().machine
    made = b"".join(
        struct.pack("<HBBI", i.code, i.yes, i.no, i.k) for i in program(machine, os.getpid(), pinned=pinned, devices=devices)
    )
    held = ctypes.create_string_buffer(made, len(made))
    told = _Program(len(made) // 8, ctypes.cast(held, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(told)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
