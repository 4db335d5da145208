"""`freehold coordinator deny` and `allow`: who is refused from now on."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from freehold.cli.options import grouped
from freehold.cli.places import CoordinatorOptions, admin

Identity = Annotated[
    str, typer.Argument(metavar="WHO", help="node/NAME, operator/NAME, researcher/NAME, or a certificate's serial.")
]


@grouped
def deny(
    who: Identity,
    where: CoordinatorOptions,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the entry.")] = "",
) -> None:
    """Refuse an identity or a certificate from now on, and cut its connections."""
    from freehold.cli.console import visible
    from freehold.wire.admin import Done, Subject

    admin(where).post("/v1/deny", Subject(name=who, reason=reason), Done)
    sys.stdout.write(f"{visible(who)} is denied.\n")


@grouped
def allow(who: Identity, where: CoordinatorOptions) -> None:
    """Take an identity or a certificate off the deny list."""
    from freehold.cli.console import visible
    from freehold.wire.admin import Done, Subject

    admin(where).post("/v1/allow", Subject(name=who), Done)
    sys.stdout.write(f"{visible(who)} is allowed again.\n")
