"""A process in a jail: bubblewrap where the machine lets it, and what the process can set for itself everywhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from freehold.sandbox.first import DATA_FD, Config
from freehold.sandbox.gpu import READABLE
from freehold.sandbox.groups import entered
from freehold.sandbox.limits import Limits

NAMESPACES, SECCOMP, LANDLOCK, LIMITS = "namespaces", "seccomp", "landlock", "limits"
CAPABILITIES, ENVIRONMENT, DESCRIPTORS, NETWORK, TIED = "capabilities", "environment", "descriptors", "network", "tied"
READ_ONLY = "read-only"
LAYERS: Final = frozenset(
    {NAMESPACES, SECCOMP, LANDLOCK, LIMITS, CAPABILITIES, ENVIRONMENT, DESCRIPTORS, NETWORK, TIED, READ_ONLY}
)
"""What a jail is made of. Only a test leaves one out, to see that the attempts which it stops then succeed."""

SYSTEM: Final = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
OF_PROC: Final = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
)
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
DATA: Final = "/data"
SCRATCH: Final = "/scratch"
FIRST: Final = str(Path(__file__).with_name("first.py"))
_PATH: Final = "/usr/bin:/bin"
_COPY_BYTES: Final = 1 << 22

ENVIRON: Final[Mapping[str, str]] = {
    "PATH": _PATH,
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LANG": "C.UTF-8",
    # One thread each, few arenas, huge pages where PyTorch wants much: as for every other process of a node.
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "THP_MEM_ALLOC_ENABLE": "1",
    # What one training step gives back the next one takes again: without these, a fifth of a small model's time is the
    # kernel's, for pages. glibc comes to these bounds by itself once something large enough was freed.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


@dataclass(frozen=True, kw_only=True)
class Jail:
    """What a process is put in."""

    bwrap: str | None
    """Path of the program; None: Landlock, seccomp and limits alone."""
    disable_userns: bool = True
    """Whether this bwrap knows --disable-userns."""
    limits: Limits
    uid: int | None = None
    """Whose user it changes to before all else; None: it stays whose it is."""
    data: Path | None = None
    """The one table that it may read, at `data_path`."""
    code: Sequence[str] = field(default_factory=lambda: code_folders())
    system: Sequence[str] = SYSTEM
    environ: Mapping[str, str] = field(default_factory=dict)
    """Beside ENVIRON."""
    layers: frozenset[str] = LAYERS
    devices: Sequence[str] = ()
    """Device files that it may use: of a GPU, if the owner says so."""
    group: Path | None = None
    """The control group that it is started in."""


def code_folders() -> list[str]:
    """Where this process' own modules come from, except the folder it happens to be in."""
    here = {"", os.getcwd(), str(Path.home()), "/"}
    found = [path for path in sys.path if path not in here and os.path.isdir(path)]
    found += [str(Path(__file__).resolve().parents[2]), sys.prefix, sys.base_prefix]
    return list(dict.fromkeys(path for path in found if path != "/"))


def data_path(jail: Jail) -> str:
    """Where a process in this jail finds its table; whoever starts it tells it so."""
    if jail.data is None:
        return ""
    if _inside(jail):
        return f"{DATA}/{jail.data.name}"
    return str(jail.data.resolve()) if _readable(jail.data, jail.uid) else f"/proc/self/fd/{DATA_FD}"


def jailed(
    module: str, fds: Sequence[int], jail: Jail, *, arguments: Sequence[str] = (), stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m module FD…` in the jail, with nothing open but these descriptors and standard error.

    From the main thread: the kernel ends a jail with the thread that made it. Raises OSError.
    """
    inside = _inside(jail)
    with contextlib.ExitStack() as stack:
        if (
            signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        ):  # would be inherited, and bwrap would not hear that its child ended
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            stack.callback(signal.signal, signal.SIGCHLD, signal.SIG_IGN)
        passed = list(fds) if DESCRIPTORS in jail.layers else _all_open()
        copy = -1
        if jail.data is not None and not _readable(jail.data, jail.uid):
            copy = _in_memory(jail.data)
            stack.callback(os.close, copy)
            passed.append(copy)
        config = Config(
            module=module,
            arguments=[*map(str, fds), *arguments],
            imports=list(jail.code),
            readable=[
                *jail.system,
                *jail.code,
                *OF_PROC,
                *DEVICES,
                *_of_devices(jail),
                *([data_path(jail)] if jail.data is not None else []),
            ],
            devices=list(jail.devices),
            writable=[SCRATCH, "/dev/null"] if inside else ["/dev/null"],
            limits=jail.limits._asdict(),
            alone=inside,
            parent=0 if inside else os.getpid(),
            data_fd=-1 if inside else copy,
            layers=sorted(jail.layers & {SECCOMP, LANDLOCK, LIMITS}),
        )
        python = [sys.executable, "-I", FIRST, config.encoded()]
        command = [*_bwrap(jail, copy), "--", *python] if inside else python
        # bwrap's own environment can be read by whoever can read its /proc entry: it gets none of this process'.
        environ = {"PATH": _PATH} if inside else {**ENVIRON, **jail.environ}
        if ENVIRONMENT not in jail.layers:
            environ = {**os.environ, **environ}
        stack.enter_context(entered(jail.group))
        return subprocess.Popen(
            command,
            pass_fds=passed,
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            user=jail.uid,
            group=jail.uid,
            extra_groups=None if jail.uid is None else [],
        )


def _of_devices(jail: Jail) -> tuple[str, ...]:
    return READABLE if jail.devices else ()


def _inside(jail: Jail) -> bool:
    return jail.bwrap is not None and NAMESPACES in jail.layers


def _bwrap(jail: Jail, copy: int) -> list[str]:
    """The command before `--`: mounts in the order in which they are made, since a later one hides what is below an earlier."""
    assert jail.bwrap is not None
    has = jail.layers.__contains__
    bind = "--ro-bind" if has(READ_ONLY) else "--bind"
    out = [jail.bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    out += ["--new-session", "--as-pid-1", "--hostname", "jail"]
    out += ["--unshare-net"] if has(NETWORK) else []
    out += ["--die-with-parent"] if has(TIED) else []
    if has(CAPABILITIES):
        out += ["--cap-drop", "ALL", *(["--disable-userns"] if jail.disable_userns else [])]
    else:
        out += [
            "--cap-add",
            "ALL",
            "--uid",
            "0",
            "--gid",
            "0",
        ]  # as another one bwrap makes a further user namespace, for /dev/pts
    out += ["--clearenv"] if has(ENVIRONMENT) else []
    for name, value in {**ENVIRON, **jail.environ}.items():
        out += ["--setenv", name, value]
    for path in jail.system:
        out += [f"{bind}-try", path, path]
    out += ["--proc", "/proc", "--dev", "/dev", "--dir", "/sys"]
    out += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    for path in jail.devices:
        out += ["--dev-bind-try", path, path]
    for path in _of_devices(jail):
        out += ["--ro-bind-try", path, path]
    out += ["--size", str(jail.limits.scratch_bytes)] if has(LIMITS) else []
    out += ["--perms", "0700", "--tmpfs", SCRATCH]
    for path in jail.code:
        out += [bind, path, path]
    if jail.data is not None:
        place = data_path(jail)
        out += [bind, str(jail.data.resolve()), place] if copy < 0 else ["--perms", "0444", "--ro-bind-data", str(copy), place]
    # The root and /dev are memory of their own, without a limit.
    out += ["--remount-ro", "/dev", "--remount-ro", "/"] if has(READ_ONLY) else []
    return [*out, "--chdir", SCRATCH]


def _all_open() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}")]


def _readable(path: Path, uid: int | None) -> bool:
    """Whether this user can read it, as far as modes say."""
    if uid is None:
        return os.access(path, os.R_OK)
    real = path.resolve()
    try:
        reached = all(folder.stat().st_mode & stat.S_IXOTH for folder in real.parents)
        return reached and bool(real.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _in_memory(path: Path) -> int:
    """A sealed copy, for a user that may not open the file itself; the caller closes the descriptor."""
    fd = os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as source, open(fd, "wb", buffering=0, closefd=False) as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        os.lseek(fd, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd
