"""`freehold coordinator deny`, `allow` and `denied`: who is refused from now on."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from freehold.cli.options import grouped
from freehold.cli.places import AsJson, CoordinatorOptions, admin

Identity = Annotated[
    str, typer.Argument(metavar="WHO", help="node/NAME, operator/NAME, researcher/NAME, or a certificate's serial.")
]


@grouped
def deny(
    who: Identity,
    where: CoordinatorOptions,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the entry.")] = "",
    even_unknown: Annotated[
        bool, typer.Option("--even-unknown", help="Also a name or serial that nobody here has or had: before it joins.")
    ] = False,
) -> None:
    """Refuse an identity or a certificate from now on, and cut its connections. `denied` lists who is."""
    from freehold.cli.console import visible
    from freehold.wire.admin import Denial, Done

    admin(where).post("/v1/deny", Denial(name=who, reason=reason, even_unknown=even_unknown), Done)
    sys.stdout.write(f"{visible(who)} is denied.\n")


@grouped
def allow(who: Identity, where: CoordinatorOptions) -> None:
    """Take an identity or a certificate off the deny list."""
    from freehold.cli.console import visible
    from freehold.wire.admin import Done, Subject

    admin(where).post("/v1/allow", Subject(name=who), Done)
    sys.stdout.write(f"{visible(who)} is allowed again.\n")


@grouped
def denied(where: CoordinatorOptions, as_json: AsJson = False) -> None:
    """List who is denied, since when and why; also certificates that are over since their node left or joined again."""
    from freehold.wire.admin import Denials

    found = admin(where).get("/v1/denied", Denials).denied
    if as_json:
        told = [{name: getattr(each, name) for name in each.__struct_fields__ if name != "version"} for each in found]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.console import visible
    from freehold.cli.show import table

    lines = [["denied", "since", "reason"]]
    for each in found:
        who = f"{each.name}, of {each.identity}" if each.identity else each.name
        lines.append([visible(who), time.strftime("%Y-%m-%d %H:%M", time.localtime(each.since)), visible(each.reason) or "-"])
    table(lines, empty="Nobody is denied.")
