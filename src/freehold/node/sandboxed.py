"""How the guard starts a trainer: in a jail that sees the table of its one study, and that was tried when the guard started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from freehold import failpoints
from freehold.errors import FreeholdError
from freehold.node.errands import Hello
from freehold.policy.tables import SANDBOXES, Sandbox
from freehold.sandbox.jail import data_path
from freehold.sandbox.selftest import assess, require
from freehold.sandbox.starting import in_jail, not_built
from freehold.wire.process import Spawn

StartTrainer = Callable[[str], tuple[Spawn, str]]
"""The path of the one table it may read, "" for none -> what starts it, and at which path it finds that table."""


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """What a guard needs to know."""

    start: StartTrainer
    said: str
    """The sandbox's level, "off", or why no trainer can be started."""

    @property
    def level(self) -> Sandbox:
        """The level that a policy may ask for."""
        return next((level for level in SANDBOXES if level == self.said), "none")


def unjailed(spawn: Spawn) -> Trainers:
    """Trainers that may do what the node's user may."""
    return Trainers(start=lambda table: (spawn, table), said="off")


def trainers_of(hello: Hello, spawn: Spawn) -> Trainers:
    """Try the sandbox, unless the node's owner wants none. Where it doesn't hold, starting a trainer raises why."""
    if hello.sandbox == "off":
        return unjailed(spawn)
    try:
        offer = require(assess(hello.state))
    except (FreeholdError, OSError, subprocess.SubprocessError) as error:
        refusal = error if isinstance(error, FreeholdError) else not_built(error)

        def refuse(table: str) -> tuple[Spawn, str]:
            raise refusal

        return Trainers(start=refuse, said=f"refused: {refusal}")
    jail = offer.jail()
    environ = {name: os.environ[name] for name in ("TZ", failpoints.VARIABLE) if name in os.environ}

    def start(table: str) -> tuple[Spawn, str]:
        own = replace(jail, data=Path(table) if table else None, environ=environ)
        return in_jail(own), data_path(own)

    return Trainers(start=start, said=offer.level)
