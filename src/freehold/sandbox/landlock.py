"""Landlock: which files a process may reach, set by the process itself, without privileges and for ever.

It doesn't hide that a file exists, and knows no UDP: for these there are namespaces and the list of system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
READ: Final = READ_FILE | READ_DIR
KNOWN_ABI: Final = 7

_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15}
"""ABI -> the highest bit of the file system's rights."""

_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_NET, _SCOPES = 0b11, 0b11
"""Binding and connecting TCP (from ABI 4); abstract sockets and signals to others outside (from ABI 6)."""

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38

_LIBC = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's, 0 where there is no Landlock or it is switched off."""
    return max(int(_LIBC.syscall(_CREATE, None, 0, _VERSION)), 0)


def rights(version: int) -> int:
    """Every right of the file system that an ABI knows."""
    return int((1 << (_LAST_RIGHT[min(version, 5)] + 1)) - 1)


def restrict(*, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str] = (), version: int | None = None) -> int:
    """Allow these files and folders and nothing else: no TCP, no execution, no signals to outside, ioctl on `devices` alone.

    What does not exist is left out. Returns the ABI that was used; raises OSError.
    """
    used = min(abi() if version is None else version, KNOWN_ABI)
    if used < 1:
        raise OSError("there is no Landlock")
    handled = rights(used)
    attribute = struct.pack("<Q", handled)
    if used >= 4:
        attribute += struct.pack("<Q", _NET)
    if used >= 6:
        attribute += struct.pack("<Q", _SCOPES)
    ruleset = _called(_CREATE, attribute, len(attribute), 0)
    try:
        for path in readable:
            _allow(ruleset, path, READ & handled)
        for path in writable:
            _allow(ruleset, path, handled & ~(EXECUTE | IOCTL_DEV))
        for path in devices:
            _allow(ruleset, path, (READ_FILE | WRITE_FILE | IOCTL_DEV) & handled)
        if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _called(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return used


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            access &= _OF_A_FILE
        _called(_ADD, ruleset, _PATH_BENEATH, struct.pack("<Qi", access, fd), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # memory, which is in no file system, and needs no rule
            raise
    finally:
        os.close(fd)


def _called(number: int, *arguments: int | bytes) -> int:
    found = int(_LIBC.syscall(number, *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
