"""Device files of GPUs: in a jail only where the owner's policy says so. A driver is a large surface, which nothing filters."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PATTERNS: Final = (
    "nvidiactl",
    "nvidia[0-9]*",
    "nvidia-uvm",
    "nvidia-caps/nvidia-cap*",
    "dri/renderD[0-9]*",
    "kfd",
)
"""NVIDIA, and what renders or computes on others: never `card*`, which draws on somebody's screen."""

READABLE: Final = ("/proc/driver/nvidia", "/sys/dev/char", "/sys/class/drm", "/sys/bus/pci", "/sys/devices")
"""What their libraries read to find them."""


def devices(folder: Path = Path("/dev")) -> tuple[str, ...]:
    """The device files that are there, sorted."""
    return tuple(sorted({str(path) for pattern in _PATTERNS for path in folder.glob(pattern) if not path.is_dir()}))
