"""Which node on this machine is meant: the options that say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from freehold.errors import UsageError
from freehold.settings import state_home

NodeName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="The node's name in the federation.")]
NodeState = Annotated[
    Path | None,
    typer.Option("--state", metavar="FOLDER", help="The node's state; ~/.local/state/freehold/node-NAME if not given."),
]


def node_state(name: str | None, state: Path | None) -> Path:
    """The node's state folder; raises UsageError where neither is given."""
    if state is not None:
        return state.absolute()
    if name is None:
        raise UsageError("Which node?", hint="Give --name NAME, or --state FOLDER.")
    return state_home(os.environ) / f"node-{name}"
