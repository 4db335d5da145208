"""`freehold doctor --sandbox`: each attempt to get out of the sandbox, and what stopped it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from freehold.sandbox import apparmor
from freehold.sandbox.selftest import Assessment, assess


def show(*, as_json: bool) -> int:
    """Make the attempts, print what came of them; 1 if one got through or there is no sandbox, else 0."""
    found = assess("doctor")
    if as_json:
        told = {
            "level": found.offer.level,
            "why": list(found.offer.why),
            "apparmor": {"needed": _needs_profile(found), "profile": str(apparmor.PROFILE)},
            "held": len(found.outcomes) - len(found.escaped),
            "of": len(found.outcomes),
            "attempts": [asdict(outcome) for outcome in found.outcomes],
        }
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        _table(found)
    return 1 if found.escaped or found.offer.level == "none" else 0


def _needs_profile(found: Assessment) -> bool:
    """Whether the AppArmor profile would raise the level."""
    return found.offer.bwrap is None and apparmor.restricts()


def _table(found: Assessment) -> None:
    from rich.text import Text

    from freehold.cli.console import output, visible

    console, offer = output(), found.offer
    color = {"none": "red", "basic": "yellow"}.get(offer.level, "green")
    console.print(Text.assemble("sandbox level ", (offer.level, f"bold {color}")))
    for why in offer.why:
        console.print(Text(f"  not higher: {visible(why)}"), soft_wrap=True)
    if _needs_profile(found):
        console.print(Text(f"  needed here, an AppArmor profile: {apparmor.remedy()}"), soft_wrap=True)
    for outcome in found.outcomes:
        style = "green" if outcome.result == "held" else "bold red"
        line = Text.assemble(
            f"{outcome.name:<17} ", (f"{outcome.result:<8}", style), f" {outcome.layer:<12} ", visible(outcome.why)
        )
        console.print(line, soft_wrap=True)
    if found.outcomes:
        console.print(f"{len(found.outcomes) - len(found.escaped)} of {len(found.outcomes)} attempts held")
    if found.escaped:
        console.print(Text("A node on this machine does not train.", "bold red"))
