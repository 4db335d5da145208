"""The self-test of a jail: every attempt of `attempts` is made inside of one, and is either held or escapes.

What an attempt would reach if it got through is planted for it: a file, a process of the same user, servers on loopback. Each is
listed with the layers that stop it, any one of which suffices; a test takes these away, and the attempt must then succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from freehold.sandbox.first import DATA_FD
from freehold.sandbox.jail import (
    CAPABILITIES,
    DESCRIPTORS,
    ENVIRONMENT,
    LANDLOCK,
    LIMITS,
    NAMESPACES,
    NETWORK,
    READ_ONLY,
    SCRATCH,
    SECCOMP,
    TIED,
    Jail,
    data_path,
    jailed,
)
from freehold.sandbox.limits import MAPPED_BYTES, Limits

LAYERS_OF: Final[dict[str, tuple[str, ...]]] = {
    "socket-unix": (SECCOMP,),
    "socket-inet": (SECCOMP,),
    "socket-inet6": (SECCOMP,),
    "socket-netlink": (SECCOMP,),
    "socket-packet": (SECCOMP, CAPABILITIES),
    "socket-vsock": (SECCOMP,),
    "socket-any": (SECCOMP,),
    "dns": (SECCOMP, NETWORK),
    "tcp": (SECCOMP, NETWORK, LANDLOCK),
    "abstract-socket": (SECCOMP, NETWORK, LANDLOCK),
    "io-uring": (SECCOMP,),
    "keyring": (SECCOMP,),
    "ptrace": (SECCOMP, NAMESPACES, LANDLOCK),
    "process-memory": (SECCOMP, NAMESPACES, LANDLOCK),
    "take-descriptor": (SECCOMP, NAMESPACES, LANDLOCK),
    "signal": (SECCOMP, NAMESPACES, LANDLOCK),
    "proc-environ": (NAMESPACES, LANDLOCK),
    "proc-mem": (NAMESPACES, LANDLOCK),
    "environment": (ENVIRONMENT,),
    "bpf": (SECCOMP,),
    "perf": (SECCOMP,),
    "userfaultfd": (SECCOMP,),
    "user-namespace": (SECCOMP, CAPABILITIES),
    "mount": (SECCOMP, CAPABILITIES, LANDLOCK),
    "chroot": (SECCOMP, CAPABILITIES),
    "ioctl": (SECCOMP,),
    "fork": (SECCOMP,),
    "program": (SECCOMP, LANDLOCK),
    "write-data": (READ_ONLY, LANDLOCK),
    "write-code": (READ_ONLY, LANDLOCK),
    "write-system": (READ_ONLY, LANDLOCK),
    "read-secret": (NAMESPACES, LANDLOCK),
    "descriptors": (DESCRIPTORS,),
    "core-dump": (LIMITS,),
    "scratch": (LIMITS,),
    "memory": (LIMITS,),
    "shared-memory": (LIMITS,),
    "memory-file": (LIMITS,),
    "threads": (LIMITS,),
    "never-end": (TIED,),
}
"""Attempt -> the layers of which each one alone stops it, the one that does so first in front."""

OF_BWRAP: Final = frozenset({NAMESPACES, NETWORK, CAPABILITIES, READ_ONLY, TIED})
"""Layers that only bubblewrap can make."""

SMALL: Final = Limits(memory_bytes=1 << 29, processes=64, scratch_bytes=1 << 22, files=64)
"""For the self-test: the same mechanisms, reached soon."""

PATIENCE_S: Final = 20.0
"""For all attempts of one jail; one that ends none of them in this time is killed."""

_LAST_S = 2.0
"""How long a jail that is killed may take to end."""

_VICTIM = (
    "import ctypes, signal, sys; ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0);"
    "sys.stdout.write('.'); sys.stdout.flush(); signal.pause()"
)
"""A process that lets others of its user trace it, also where the kernel (Yama) by itself does not."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one attempt."""

    name: str
    result: Literal["held", "escaped"]
    layer: str
    """What stopped it, "" if nothing did."""
    why: str
    """The error that it met, or what else there is to say."""


def layers_of(name: str, jail: Jail) -> tuple[str, ...]:
    """The layers that stop an attempt in such a jail."""
    if jail.bwrap is not None:
        return LAYERS_OF[name]
    if name == "scratch":
        return (LANDLOCK,)  # there is none
    if name == "never-end":
        return ("kill",)  # what is killed is the process itself
    return tuple(layer for layer in LAYERS_OF[name] if layer not in OF_BWRAP)


def run(jail: Jail, names: Sequence[str] = tuple(LAYERS_OF)) -> list[Outcome]:
    """Make these attempts in jails like this one, with data and limits for the purpose. Raises OSError if none can be built."""
    with _planted(jail) as (inside, facts, answering, secret):
        together = [name for name in names if name != "never-end"]
        found = _attempted(inside, together, facts, answering, secret) if together else {}
        if "never-end" in names:
            found["never-end"] = _killed(inside, facts)
    return [_outcome(name, found.get(name), jail) for name in names]


def _outcome(name: str, told: tuple[bool, str] | None, jail: Jail) -> Outcome:
    if told is None:  # nobody knows whether it would have been held
        return Outcome(name=name, result="escaped", layer="", why="the jail ended before it was tried")
    escaped, why = told
    layer = next((layer for layer in layers_of(name, jail) if layer in jail.layers or layer == "kill"), "the kernel")
    return Outcome(name=name, result="escaped" if escaped else "held", layer="" if escaped else layer, why=why)


@contextlib.contextmanager
def _planted(jail: Jail) -> Iterator[tuple[Jail, dict[str, object], socket.socket, int]]:
    """The jail as it is to be tried, what the attempts are told, the socket whose questions are answered, a file that is open."""
    with contextlib.ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="freehold-escapes-", dir=_place(jail.uid)))
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        canary = base.name
        (base / "table.csv").write_text("a,b\n1,2\n", encoding="ascii")
        (base / "secret").write_text("secret", encoding="ascii")
        for folder in ("code", "system", "open"):
            (base / folder).mkdir()
        for path in (base, *base.iterdir()):
            if jail.uid is not None:
                os.chown(path, jail.uid, jail.uid)
            path.chmod(0o755 if path.is_dir() else 0o644)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        udp.bind(("127.0.0.1", 0))
        tcp.bind(("127.0.0.1", 0))
        abstract.bind("\0" + canary)
        tcp.listen()
        abstract.listen()
        victim = stack.enter_context(_victim(jail.uid, canary))
        secret = os.open(base / "secret", os.O_RDONLY)
        stack.callback(os.close, secret)
        inside = replace(
            jail,
            limits=SMALL,
            data=base / "table.csv",
            code=[*jail.code, str(base / "code")],
            system=[*jail.system, str(base / "system")],
        )
        walled = jail.bwrap is not None and NAMESPACES in jail.layers
        facts: dict[str, object] = {
            "udp": udp.getsockname()[1],
            "tcp": tcp.getsockname()[1],
            "abstract": canary,
            "canary": canary,
            "victim": victim.pid,
            "data": data_path(inside),
            "code": str(base / "code"),
            "system": str(base / "system"),
            "secret": str(base / "secret"),
            "scratch": SCRATCH if walled else str(base / "open"),
            "scratch_bytes": SMALL.scratch_bytes,
            "memory_bytes": SMALL.memory_bytes,
            "mapped_bytes": SMALL.memory_bytes + MAPPED_BYTES,
            "processes": SMALL.processes,
            "copy": DATA_FD,
        }
        yield inside, facts, udp, secret


def _place(uid: int | None) -> str | None:
    """A folder for temporary files that this user can reach; None: the usual one."""
    if uid is None:
        return None
    places = [Path(place).resolve() for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm") if Path(place).is_dir()]
    return next((str(at) for at in places if all(each.stat().st_mode & 0o001 for each in (at, *at.parents))), None)


@contextlib.contextmanager
def _victim(uid: int | None, canary: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _VICTIM],
        env={"SECRET": canary},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    ) as victim:
        try:
            assert victim.stdout is not None
            victim.stdout.read(1)
            yield victim
        finally:
            victim.kill()


def _attempted(
    jail: Jail, names: Sequence[str], facts: dict[str, object], answering: socket.socket, secret: int
) -> dict[str, tuple[bool, str]]:
    """Attempt -> whether it escaped, and why not."""
    told = b""
    with _started(jail, names, facts, [secret]) as (_, out), selectors.DefaultSelector() as both:
        both.register(out, selectors.EVENT_READ)
        both.register(answering, selectors.EVENT_READ)
        while ready := both.select(PATIENCE_S):
            if any(key.fileobj is answering for key, _ in ready):
                _, peer = answering.recvfrom(16)
                answering.sendto(b"!", peer)
            if any(key.fd == out for key, _ in ready):
                piece = os.read(out, 1 << 16)
                if not piece:
                    break
                told += piece
    lines = [json.loads(line) for line in told.splitlines()]
    return {line["name"]: (line["escaped"], line["why"]) for line in lines}


def _killed(jail: Jail, facts: dict[str, object]) -> tuple[bool, str]:
    """Whether a process that never ends outlives the one that it was started as."""
    with _started(jail, ["never-end"], facts, []) as (process, out), selectors.DefaultSelector() as waiting:
        waiting.register(out, selectors.EVENT_READ)
        if not waiting.select(PATIENCE_S) or not os.read(out, 1 << 16):
            return True, "it never began"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            inner = [int(pid) for pid in children.read_text(encoding="ascii").split()]
        except OSError:
            inner = []
        process.kill()
        if waiting.select(_LAST_S) and not os.read(out, 1 << 16):
            return False, "killed"
        for pid in inner:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        return True, ""


@contextlib.contextmanager
def _started(
    jail: Jail, names: Sequence[str], facts: dict[str, object], left_open: Sequence[int]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The jail, and where its lines can be read until it has ended; it is killed with the block."""
    out, their = os.pipe()
    environ = dict(os.environ)
    os.environ["FREEHOLD_CANARY"] = str(facts["canary"])
    for fd in left_open:
        os.set_inheritable(fd, True)
    try:
        process = jailed(
            "freehold.sandbox.attempts", [their], jail, arguments=[json.dumps(facts), *names], stderr=subprocess.DEVNULL
        )
    except BaseException:
        os.close(out)
        raise
    finally:
        os.environ.clear()
        os.environ.update(environ)
        os.close(their)
    try:
        yield process, out
    finally:
        process.kill()
        process.wait()
        os.close(out)
