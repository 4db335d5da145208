"""Starts a module in a jail, as other processes start their children."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from freehold.errors import SandboxError, SandboxMissing
from freehold.sandbox.jail import Jail, jailed
from freehold.sandbox.probe import LEVELS, Level, probe
from freehold.sandbox.trainer_user import trainer_uid


def in_jail(jail: Jail) -> Callable[[str, int], subprocess.Popen[bytes]]:
    """(module, descriptor of its channel) -> the process in this jail; raises SandboxError."""

    def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
        try:
            return jailed(module, [fd], jail)
        except (OSError, subprocess.SubprocessError) as error:
            raise not_built(error) from error

    return spawn


def for_foreign_code(seed: str, *, least: Level = "standard") -> Callable[[str, int], subprocess.Popen[bytes]]:
    """What starts modules that run foreign code, without data. `seed`: of its user, one a state folder.

    Raises SandboxMissing where the machine offers less than this level.
    """
    offer = probe(trainer_uid(seed))
    if LEVELS.index(offer.level) < LEVELS.index(least):
        raise SandboxMissing(
            f"Code that comes with a plan needs a sandbox of level {least} here, and this machine offers {offer.level}: "
            f"{'; '.join(offer.why)}.",
            hint="`freehold doctor --sandbox` says more; docs/how-to/sandbox.md tells what to install.",
        )
    return in_jail(offer.jail())


def not_built(error: BaseException) -> SandboxError:
    """What is said of a jail that could not be made."""
    return SandboxError(
        f"The sandbox cannot be built ({type(error).__name__}).",
        hint="`freehold doctor --sandbox` says more; nothing was trained.",
    )
