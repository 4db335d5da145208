"""`freehold token`: the right to join, in one line of text."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.places import AsJson, CoordinatorState, admin
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.wire.admin import TokenInfo

token = typer.Typer(no_args_is_help=True, help="Make and withdraw join tokens, on the coordinator's machine.")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@token.callback()
def _start() -> None:
    pass


@token.command()
def create(
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it can be used: 30m, 24h, 7d.")] = "24h",
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="The only node that may use it; any if not given.")
    ] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, metavar="N", help="How many nodes may use it.")] = 1,
    state: CoordinatorState = None,
    as_json: AsJson = False,
) -> None:
    """Print a new join token; it is shown this once. How to use it goes to standard error."""
    from freehold.cli.console import errors
    from freehold.wire.admin import TokenMade, TokenRequest

    made = admin(state).post("/v1/tokens", TokenRequest(node=node, ttl_s=seconds(ttl), uses=uses), TokenMade)
    if as_json:
        sys.stdout.write(json.dumps({"token": made.token, "expires": made.expires, "url": made.url}) + "\n")
        return
    sys.stdout.write(made.token + "\n")
    name = node or "NAME"
    errors().print(
        f"Until {_when(made.expires)}. Save it as {name}.token, on a way that you trust; then on the node:\n"
        f"  freehold node start --name {name} --coordinator {made.url} --join-file {name}.token --data NAME=FILE",
        style="dim",
    )


@token.command("list")
def list_(state: CoordinatorState = None, as_json: AsJson = False) -> None:
    """List the tokens, without their secrets."""
    from freehold.wire.admin import Tokens

    found = admin(state).get("/v1/tokens", Tokens).tokens
    if as_json:
        told = [{name: getattr(each, name) for name in each.__struct_fields__ if name != "version"} for each in found]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.console import visible
    from freehold.cli.show import table

    lines = [["token", "for node", "uses left", "expires", "state"]]
    lines += [[each.id, visible(each.node or "any"), str(each.uses), _when(each.expires), _state(each)] for each in found]
    table(lines, empty="No tokens.")


@token.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="TOKEN", help="Its number, as `token list` shows it.")],
    state: CoordinatorState = None,
) -> None:
    """Withdraw a token: nobody joins with it any more. Nodes that did stay members."""
    from freehold.wire.admin import Done, Subject

    admin(state).post("/v1/tokens/revoke", Subject(name=name), Done)
    sys.stdout.write(f"Token {name} is revoked.\n")


def seconds(text: str) -> float:
    """ "24h" as seconds."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if not match or not int(match[1]):
        raise UsageError(f"{text!r} is no length of time.", hint="Write a whole number and s, m, h or d: 30m, 24h, 7d.")
    return float(int(match[1]) * _UNITS[match[2]])


def _when(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _state(token: TokenInfo) -> str:
    if token.revoked is not None:
        return "revoked"
    if token.expires < time.time():
        return "expired"
    return "open" if token.uses > 0 else "used"
