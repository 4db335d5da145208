"""Where the states of coordinators and nodes are, which coordinator is asked, and the options that say so."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.errors import UsageError
from freehold.settings import state_home

if TYPE_CHECKING:
    from freehold.wire.admin import Administrator

CoordinatorState = Annotated[
    Path | None,
    typer.Option("--state", metavar="FOLDER", help="The coordinator's state; ~/.local/state/freehold/coordinator if not given."),
]

IdentityFolder = Annotated[
    Path | None,
    typer.Option("--identity", metavar="FOLDER", help="What `freehold login` keeps; ~/.config/freehold/HOST_PORT if not given."),
]


@dataclass(frozen=True, kw_only=True)
class CoordinatorOptions:
    """Which coordinator is asked: the one on this machine over its socket, or one elsewhere with a certificate."""

    state: CoordinatorState = None
    coordinator: Annotated[
        str | None,
        typer.Option("--coordinator", metavar="URL", help="A coordinator elsewhere, in place of --state; see `freehold login`."),
    ] = None
    identity: IdentityFolder = None


AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def coordinator_state(given: Path | None) -> Path:
    """The state folder of the coordinator on this machine."""
    return (given or state_home(os.environ) / "coordinator").absolute()


def flags(where: CoordinatorOptions) -> str:
    """What a command has to say to ask the same coordinator; empty for the one that is asked without a word."""
    said = {"--state": where.state, "--coordinator": where.coordinator, "--identity": where.identity}
    return "".join(f" {flag} {shlex.quote(str(value))}" for flag, value in said.items() if value is not None)


def admin(where: CoordinatorOptions) -> Administrator:
    """The coordinator's administration; raises Unreachable, when it is asked, where none runs there."""
    if where.coordinator is None:
        if where.identity is not None:
            raise UsageError("--identity is for a coordinator elsewhere.", hint="Give --coordinator URL, too.")
        from freehold.wire.admin import Admin

        return Admin(coordinator_state(where.state) / "admin.sock")
    if where.state is not None:
        raise UsageError("A coordinator is either here or elsewhere.", hint="Give --state or --coordinator, not both.")
    from freehold.cli.login import remote

    return remote(where.coordinator, where.identity)
