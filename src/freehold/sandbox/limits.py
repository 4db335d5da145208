"""How much a trainer may take of the machine."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

MAPPED_BYTES = 8 << 30
"""Address space beside the memory limit, for libraries and files that are mapped."""


class Limits(NamedTuple):
    """Of one jail. No dataclass, and no pathlib below: importing them is a tenth of what a jail adds to a start."""

    memory_bytes: int
    """Private memory of the process; each file in memory (what it answers with) may be as large, too."""
    processes: int = 512
    """Processes and threads. A thread pool has one for each core."""
    scratch_bytes: int = 256 << 20
    """What may be written to /tmp, which is memory, too."""
    files: int = 256
    """Open descriptors."""
    cpus: int = 0
    """Processors that it may run on; 0: all."""


def usual() -> Limits:
    """Three quarters of this machine's memory, and threads for its cores."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Limits(memory_bytes=memory * 3 // 4, processes=max(512, 4 * (os.cpu_count() or 1)))


def apply(limits: Limits, *, alone: bool, devices: bool = False) -> None:
    """To this process, for good. `alone`: in a user namespace of its own, where nobody else's processes are counted.

    `devices`: a GPU's driver reserves more addresses than any limit; memory of its own stays limited.
    """
    if limits.cpus:
        import random  # seldom, and it takes milliseconds

        # Which ones, by chance: several jails should not share the first.
        there = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, random.sample(there, min(limits.cpus, len(there))))
    others = 0 if alone else _threads_of(os.getuid())
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_AS, resource.RLIM_INFINITY if devices else limits.memory_bytes + MAPPED_BYTES),
        (resource.RLIMIT_FSIZE, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, limits.processes + others),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = min((each for each in (most, hard) if each != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)
        resource.setrlimit(kind, (least, least))


def _threads_of(uid: int) -> int:
    """How many threads of this user run now."""
    count = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it has just ended
    return count
