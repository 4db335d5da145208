"""What the node's own page shows of a study; it stays on this machine, and is not worth failing for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from freehold.plan import Plan, digest


def note(state: Path, plan: Plan, key: str, value: dict[str, object]) -> None:
    """Add to what is known of a study, in <state>/studies."""
    folder = state / "studies"
    path = folder / f"{digest(plan).removeprefix('sha256:')[:16]}.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    told |= {"name": plan.name, "plan": digest(plan)}
    told[key] = {**told.get(key, {}), **value}
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        path.write_text(json.dumps(told, indent=1), encoding="utf-8")
