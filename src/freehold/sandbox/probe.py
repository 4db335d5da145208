"""What this machine offers for a jail, found by trying, never by version numbers: containers and security modules change it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Final, Literal

from freehold.sandbox import apparmor, landlock, seccomp
from freehold.sandbox.jail import LANDLOCK, LAYERS, Jail, jailed
from freehold.sandbox.limits import Limits, usual

Level = Literal["strict", "standard", "basic", "none"]
LEVELS: Final[tuple[Level, ...]] = ("none", "basic", "standard", "strict")
"""From the weakest.

strict: all namespaces, no further user namespaces, Landlock that keeps signals in (ABI 6), the list of system calls, limits.
standard: the same with an older Landlock or none, or with a bwrap that cannot forbid further user namespaces by itself.
basic: Landlock, the list of system calls and limits; it needs no privileges and works in most containers.
none: nothing that could be relied on; a node doesn't train.
"""

_SCOPED_ABI: Final = 6
_TRY_S: Final = 20.0
_PLACES: Final = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What there is."""

    level: Level
    why: tuple[str, ...]
    """Why no higher level is there, and what would help; nothing at "strict"."""
    bwrap: str | None
    """The program, where it can make namespaces here."""
    disable_userns: bool
    landlock_abi: int
    """0: none."""
    seccomp: bool
    uid: int | None
    """Whose user a trainer is; None: the node's own."""

    def jail(self, limits: Limits | None = None) -> Jail:
        """A jail of this level; raises ValueError at "none"."""
        if self.level == "none":
            raise ValueError("there is no such jail")
        return Jail(
            bwrap=self.bwrap if self.level in ("strict", "standard") else None,
            disable_userns=self.disable_userns,
            limits=limits or usual(),
            uid=self.uid,
            layers=LAYERS if self.landlock_abi else LAYERS - {LANDLOCK},
        )


def probe(uid: int | None, *, search: str = _PLACES) -> Offer:
    """Try what there is, for a trainer of this user. `search`: folders where bwrap may be."""
    has_seccomp, abi = seccomp.supported(), landlock.abi()
    path = shutil.which("bwrap", path=search)
    knows = path is not None and "--disable-userns" in _said([path, "--help"])
    offer = Offer(
        level="standard",
        why=(),
        bwrap=path,
        disable_userns=knows,
        landlock_abi=abi,
        seccomp=has_seccomp,
        uid=uid,
    )
    why: list[str] = []
    if not has_seccomp:
        why.append("the kernel, or whoever started this container, allows no list of system calls (seccomp)")
    if path is None:
        why.append("bubblewrap is not installed: apt-get install bubblewrap")
    elif has_seccomp:
        problem = _problem(offer)
        if problem and knows:
            without = replace(offer, disable_userns=False)
            if not _problem(without):
                offer, problem, knows = without, "", False
        if problem:
            why.append(f"bubblewrap makes no namespaces here ({problem}): {_remedy(problem)}")
            offer = replace(offer, bwrap=None)
        elif not knows:
            why.append("this bubblewrap has no --disable-userns, which came with 0.8")
    if abi < _SCOPED_ABI:
        said = f"Landlock is at version {abi}" if abi else "there is no Landlock"
        why.append(f"{said}; version {_SCOPED_ABI} came with Linux 6.12 (it is switched on by lsm=landlock,… at boot)")
    return replace(offer, level=_level(offer, strict=not why), why=tuple(why))


def _level(offer: Offer, *, strict: bool) -> Level:
    if not offer.seccomp:
        return "none"
    if offer.bwrap is not None:
        return "strict" if strict else "standard"
    return "basic" if offer.landlock_abi else "none"


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_S, env={"PATH": _PLACES}, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _problem(offer: Offer) -> str:
    """Why an empty program doesn't end well in such a jail; "" if it does."""
    reading, writing = os.pipe()
    try:
        process = jailed("freehold.sandbox", [], offer.jail(), stderr=writing)
        os.close(writing)
        writing = -1
        with os.fdopen(reading, "r", encoding="utf-8", errors="replace") as said:
            reading = -1
            text = said.read(1 << 16)
        code = process.wait(_TRY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)
    lines = text.strip().splitlines()
    return "" if code == 0 else (lines[-1] if lines else f"it ended with {code}")


def _remedy(problem: str) -> str:
    if "source path" in problem or "execvp" in problem:
        return (
            f"a trainer of another user than root cannot read {sys.prefix} or where Freehold lies; "
            "install it below /opt, or run the node as a user of its own"
        )
    if "uid map" in problem or "RTM_NEWADDR" in problem or apparmor.restricts():
        return f"Ubuntu restricts user namespaces; Freehold's AppArmor profile lifts that for bubblewrap: {apparmor.remedy()}"
    if "mount proc" in problem:
        return "in a container /proc is covered: see the settings in docs/how-to/sandbox.md"
    return "allow user namespaces (user.max_user_namespaces, or the container's seccomp profile), see docs/how-to/sandbox.md"
