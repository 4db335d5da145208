"""Whether this system keeps user namespaces from programs without an AppArmor profile, and where ours is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PROFILE: Final = Path(__file__).with_name("freehold-sandbox.apparmor")
"""Ships with Freehold."""

_SWITCH: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


def restricts(switch: Path = _SWITCH) -> bool:
    """Whether the kernel does so: Ubuntu 24.04 and later, unless somebody switched it off."""
    try:
        return switch.read_text(encoding="ascii").strip() == "1"
    except (OSError, UnicodeDecodeError):
        return False


def remedy() -> str:
    """The two commands that install the profile."""
    return f"cp {PROFILE} /etc/apparmor.d/ && apparmor_parser -r /etc/apparmor.d/{PROFILE.name}"
