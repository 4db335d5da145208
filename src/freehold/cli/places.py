"""Where the states of coordinators and nodes are, and the options that say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.settings import state_home

if TYPE_CHECKING:
    from freehold.wire.admin import Admin

CoordinatorState = Annotated[
    Path | None,
    typer.Option("--state", metavar="FOLDER", help="The coordinator's state; ~/.local/state/freehold/coordinator if not given."),
]

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def coordinator_state(given: Path | None) -> Path:
    """The state folder of the coordinator on this machine."""
    return (given or state_home(os.environ) / "coordinator").absolute()


def admin(state: Path | None) -> Admin:
    """The coordinator's administration; raises Unreachable, when it is asked, where none runs on this machine."""
    from freehold.wire.admin import Admin

    return Admin(coordinator_state(state) / "admin.sock")
