"""Attempts to get out of a jail, made from inside of it: one that returns got through, one that raises was held.

`python -m freehold.sandbox.attempts FD FACTS NAME…`, as the module of a jail. Nothing is done that could do harm outside if it
succeeds: what is written, read, signaled and connected to was made for the purpose by `escapes`, on this machine.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from freehold.sandbox.syscalls import NUMBERS

Facts = dict[str, Any]

_LIBC = ctypes.CDLL(None, use_errno=True)
_TIMEOUT_S = 0.5
_STEP_BYTES = 1 << 24
_BEYOND_BYTES = 1 << 26
_BEYOND_THREADS = 32


class Held(Exception):
    """What was tried led to nothing, without an error of the system's."""


def _call(name: str, *arguments: int | bytes | None) -> int:
    whole = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found = int(_LIBC.syscall(NUMBERS[platform.machine()][name], *whole))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def _socket(family: int, kind: int, protocol: int = 0) -> Callable[[Facts], None]:
    def attempt(facts: Facts) -> None:
        socket.socket(family, kind, protocol).close()

    return attempt


def any_socket(facts: Facts) -> None:
    """A socket of any family whatever, of any usual kind."""
    for family in range(64):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                os.close(_call("socket", family, kind, 0))
            except OSError:
                continue
            return
    raise Held("none of 64 families")


def dns(facts: Facts) -> None:
    """A question by UDP to a server that answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.settimeout(_TIMEOUT_S)
        end.sendto(b"?", ("127.0.0.1", facts["udp"]))
        end.recv(16)


def tcp(facts: Facts) -> None:
    """A connection by TCP to a server that listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as end:
        end.settimeout(_TIMEOUT_S)
        end.connect(("127.0.0.1", facts["tcp"]))


def abstract(facts: Facts) -> None:
    """A connection to a local service that no file stands for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(_TIMEOUT_S)
        end.connect("\0" + facts["abstract"])


def io_uring(facts: Facts) -> None:
    """A ring: its operations pass by every list of system calls."""
    os.close(_call("io_uring_setup", 1, bytes(120)))


def keyring(facts: Facts) -> None:
    """A key in the kernel's keyring of this process, which is not in any namespace."""
    _call("add_key", b"user\0", b"freehold-escape\0", b"x", 1, -2)


def trace(facts: Facts) -> None:
    """Seize another process of the same user."""
    _call("ptrace", 0x4206, facts["victim"], 0, 0)


def read_memory(facts: Facts) -> None:
    """Read another process' memory; an address that isn't there is refused only after the right to read was found."""
    try:
        held = ctypes.create_string_buffer(8)
        here = struct.pack("QQ", ctypes.addressof(held), 8)
        _call("process_vm_readv", facts["victim"], here, 1, struct.pack("QQ", 4096, 8), 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def take_descriptor(facts: Facts) -> None:
    """Copy a descriptor out of another process."""
    pidfd = _call("pidfd_open", facts["victim"], 0)
    os.close(_call("pidfd_getfd", pidfd, 1, 0))


def signal_other(facts: Facts) -> None:
    """Signal another process of the same user; signal 0 only asks whether it may."""
    _call("kill", facts["victim"], 0)


def proc_environ(facts: Facts) -> None:
    """Another process' environment, where tokens are."""
    if facts["canary"].encode() not in Path(f"/proc/{facts['victim']}/environ").read_bytes():
        raise Held("another environment")


def proc_memory(facts: Facts) -> None:
    """Another process' memory, as a file."""
    with open(f"/proc/{facts['victim']}/mem", "rb"):
        pass


def own_environ(facts: Facts) -> None:
    """What the launcher's environment held, found in this process' own or in that of PID 1."""
    for place in ("self", "1"):
        try:
            found = Path(f"/proc/{place}/environ").read_bytes()
        except OSError:
            continue
        if facts["canary"].encode() in found:
            return
    if facts["canary"] not in os.environ.values():
        raise Held("it is not there")


def bpf(facts: Facts) -> None:
    """A map for a program in the kernel."""
    os.close(_call("bpf", 0, struct.pack("IIIII", 2, 4, 4, 1, 0) + bytes(100), 120))


def perf(facts: Facts) -> None:
    """A counter of what this process does, in a subsystem with many defects."""
    os.close(_call("perf_event_open", struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, 0b1100001) + bytes(64), 0, -1, -1, 0))


def fault_handler(facts: Facts) -> None:
    """Page faults handled by this process: what makes races in the kernel easy to win."""
    os.close(_call("userfaultfd", 1))


def user_namespace(facts: Facts) -> None:
    """A user namespace, and with it every capability inside of it."""
    _call("unshare", 0x10000000)


def mount(facts: Facts) -> None:
    """A file system over one that is there."""
    place = facts["scratch"].encode() + b"\0"
    _call("mount", b"none\0", place, b"tmpfs\0", 0, None)


def change_root(facts: Facts) -> None:
    """Another root folder."""
    _call("chroot", b"/\0")


def odd_ioctl(facts: Facts) -> None:
    """An ioctl that no trainer needs (FIOASYNC)."""
    if _LIBC.ioctl(facts["channel"], 0x5452, ctypes.byref(ctypes.c_int(0))) != 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def fork(facts: Facts) -> None:
    """Another process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def program(facts: Facts) -> None:
    """Another program."""
    subprocess.run(["/bin/true"], check=True)


def _write(key: str) -> Callable[[Facts], None]:
    def attempt(facts: Facts) -> None:
        path = Path(facts[key])
        with open(path / "planted" if path.is_dir() else path, "ab") as file:
            file.write(b"x")

    return attempt


def write_system(facts: Facts) -> None:
    """Write to the planted folder of the system, to /usr or to the root of what it sees."""
    for folder in (facts["system"], "/usr", "/usr/bin", "/", "/dev/shm", "/etc"):
        path = Path(folder, ".freehold-escape")
        try:
            path.write_bytes(b"x")
        except OSError:
            continue
        path.unlink()
        return
    raise Held("none of 6 folders")


def read_secret(facts: Facts) -> None:
    """A file that this user could read, if it could be reached."""
    Path(facts["secret"]).read_bytes()


def descriptors(facts: Facts) -> None:
    """An open file that was meant for another process."""
    for fd in range(3, 1024):
        if fd in (facts["channel"], facts["copy"]):
            continue
        try:
            os.fstat(fd)
        except OSError:
            continue
        return
    raise Held("none is open")


def core_dump(facts: Facts) -> None:
    """Leave memory, and the data in it, in a core file or with a program that collects them."""
    dumpable = _LIBC.prctl(3, 0, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0 and dumpable == 0:
        raise Held("the limit is 0, and so is dumpable")


def scratch(facts: Facts) -> None:
    """Write more than the limit of its scratch folder."""
    most = facts["scratch_bytes"] + _STEP_BYTES
    path = Path(facts["scratch"], "filling")
    try:
        with open(path, "wb", buffering=0) as file:
            written = 0
            while written < most:
                written += file.write(bytes(1 << 20))
    finally:
        path.unlink(missing_ok=True)


def _map(flags: int, most: int) -> None:
    held = []
    try:
        for _ in range(most // _STEP_BYTES):
            held.append(mmap.mmap(-1, _STEP_BYTES, flags=flags | mmap.MAP_ANONYMOUS))
    except (OSError, MemoryError) as error:
        raise Held("no more memory") from error
    finally:
        for each in held:
            each.close()


def memory(facts: Facts) -> None:
    """Ask for more memory than the limit; it is never touched."""
    _map(mmap.MAP_PRIVATE, facts["memory_bytes"] + _BEYOND_BYTES)


def shared_memory(facts: Facts) -> None:
    """The same by memory that could be shared."""
    _map(mmap.MAP_SHARED | 0x4000, facts["mapped_bytes"] + _BEYOND_BYTES)  # MAP_NORESERVE


def memory_file(facts: Facts) -> None:
    """A file in memory that is larger than the limit; it is never touched."""
    fd = os.memfd_create("large")
    try:
        os.ftruncate(fd, facts["memory_bytes"] + _BEYOND_BYTES)
    finally:
        os.close(fd)


def threads(facts: Facts) -> None:
    """More threads than the limit."""
    threading.stack_size(1 << 16)
    go = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(facts["processes"] + _BEYOND_THREADS):
            thread = threading.Thread(target=go.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise Held(f"after {len(started)}") from error
    finally:
        go.set()
        for thread in started:
            thread.join()


def never_end(facts: Facts) -> None:
    """Go on when told to stop."""
    os.write(facts["channel"], b'{"name": "never-end", "escaped": false, "why": "started"}\n')
    while True:
        pass


ATTEMPTS: Final[dict[str, Callable[[Facts], None]]] = {
    "socket-unix": _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "socket-inet": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "socket-inet6": _socket(socket.AF_INET6, socket.SOCK_STREAM),
    "socket-netlink": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socket-packet": _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "socket-vsock": _socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "socket-any": any_socket,
    "dns": dns,
    "tcp": tcp,
    "abstract-socket": abstract,
    "io-uring": io_uring,
    "keyring": keyring,
    "ptrace": trace,
    "process-memory": read_memory,
    "take-descriptor": take_descriptor,
    "signal": signal_other,
    "proc-environ": proc_environ,
    "proc-mem": proc_memory,
    "environment": own_environ,
    "bpf": bpf,
    "perf": perf,
    "userfaultfd": fault_handler,
    "user-namespace": user_namespace,
    "mount": mount,
    "chroot": change_root,
    "ioctl": odd_ioctl,
    "fork": fork,
    "program": program,
    "write-data": _write("data"),
    "write-code": _write("code"),
    "write-system": write_system,
    "read-secret": read_secret,
    "descriptors": descriptors,
    "core-dump": core_dump,
    "scratch": scratch,
    "memory": memory,
    "shared-memory": shared_memory,
    "memory-file": memory_file,
    "threads": threads,
    "never-end": never_end,
}


def main() -> None:
    """Make the attempts in this order, and say of each what came of it, one line of JSON each."""
    channel, facts = int(sys.argv[1]), json.loads(sys.argv[2])
    facts["channel"] = channel
    for name in sys.argv[3:]:
        try:
            ATTEMPTS[name](facts)
            told = {"name": name, "escaped": True, "why": ""}
        except OSError as error:
            told = {"name": name, "escaped": False, "why": errno.errorcode.get(error.errno or 0, type(error).__name__)}
        except Held as error:
            told = {"name": name, "escaped": False, "why": str(error)}
        os.write(channel, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    main()
