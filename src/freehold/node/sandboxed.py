"""How the guard starts a trainer: in a jail that sees the table of its one study, and that was tried when the guard started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from freehold import failpoints
from freehold.errors import FreeholdError
from freehold.node.errands import Hello
from freehold.policy.tables import SANDBOXES, Sandbox
from freehold.sandbox.gpu import devices
from freehold.sandbox.groups import Groups, delegated
from freehold.sandbox.jail import Jail, data_path
from freehold.sandbox.selftest import assess, require
from freehold.sandbox.starting import in_jail, not_built
from freehold.wire.process import Spawn


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an owner lets a trainer take of the machine; None: what is usual."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    gpu: bool = False
    """Whether it gets the device files of GPUs."""


StartTrainer = Callable[[str, Bounds], tuple[Spawn, str]]
"""The path of the one table it may read, "" for none, and its bounds -> what starts it, and at which path it finds that table."""


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """What a guard needs to know."""

    start: StartTrainer
    said: str
    """The sandbox's level, "off", or why no trainer can be started."""
    held: int = 0
    """Attempts to get out of it that were made now, and held."""

    bounded: Literal["", "processes", "group"] = ""
    """What holds them to `Bounds`."""

    @property
    def level(self) -> Sandbox:
        """The level that a policy may ask for."""
        return next((level for level in SANDBOXES if level == self.said), "none")


def unjailed(spawn: Spawn) -> Trainers:
    """Trainers that may do what the node's user may."""
    return Trainers(start=lambda table, bounds: (spawn, table), said="off")


def trainers_of(hello: Hello, spawn: Spawn) -> Trainers:
    """Try the sandbox, unless the node's owner wants none. Where it doesn't hold, starting a trainer raises why."""
    if hello.sandbox == "off":
        return unjailed(spawn)
    try:
        found = assess(hello.state)
        offer = require(found)
    except (FreeholdError, OSError, subprocess.SubprocessError) as error:
        refusal = error if isinstance(error, FreeholdError) else not_built(error)

        def refuse(table: str, bounds: Bounds) -> tuple[Spawn, str]:
            raise refusal

        return Trainers(start=refuse, said=f"refused: {refusal}")
    jail, groups = offer.jail(), delegated()
    environ = {name: os.environ[name] for name in ("TZ", failpoints.VARIABLE) if name in os.environ}

    def start(table: str, bounds: Bounds) -> tuple[Spawn, str]:
        own = replace(_bounded(jail, bounds, groups), data=Path(table) if table else None, environ=environ)
        return in_jail(own), data_path(own)

    return Trainers(start=start, said=offer.level, held=len(found.outcomes), bounded="processes" if groups is None else "group")


def _bounded(jail: Jail, bounds: Bounds, groups: Groups | None) -> Jail:
    """The jail with the owner's limits: in a control group, or of its process alone. Raises SandboxError."""
    limits = jail.limits
    if bounds.memory:
        limits = limits._replace(memory_bytes=min(limits.memory_bytes, bounds.memory))
    if bounds.gpu:
        jail = replace(jail, devices=devices())
    if groups is None:
        return replace(jail, limits=limits._replace(cpus=int(bounds.cpus or 0)))
    try:
        group = groups.make(memory_bytes=limits.memory_bytes, cpus=bounds.cpus or None, processes=limits.processes)
    except OSError as error:
        raise not_built(error) from error
    return replace(jail, limits=limits, group=group)
