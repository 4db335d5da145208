"""`freehold token`: the right to join, in one line of text."""

from __future__ import annotations

import json
import re
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.options import grouped
from freehold.cli.places import AsJson, CoordinatorOptions, admin
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.wire.admin import TokenInfo

token = typer.Typer(no_args_is_help=True, help="Make and withdraw join tokens.")


class RoleName(StrEnum):
    """What a token's holder becomes."""

    node = "node"
    operator = "operator"
    researcher = "researcher"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@token.callback()
def _start() -> None:
    pass


@token.command()
@grouped
def create(
    where: CoordinatorOptions,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it can be used: 30m, 24h, 7d.")] = "24h",
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="The only node that may use it; any if not given.")
    ] = None,
    role: Annotated[
        RoleName,
        typer.Option("--role", help="Whom it lets in: a node, or a person, see `freehold login`."),
    ] = RoleName.node,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="With --role: the person who may use it.")] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, metavar="N", help="How many nodes may use it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print a new join token; it is shown this once. How to use it goes to standard error."""
    from freehold.cli.console import errors
    from freehold.wire.admin import TokenMade, TokenRequest

    if node is not None and (name is not None or role is not RoleName.node):
        raise UsageError("--node is for a node alone.", hint="With --role give --name NAME.")
    bound = node or name
    request = TokenRequest(role=role.value, node=bound, ttl_s=seconds(ttl), uses=uses)
    made = admin(where).post("/v1/tokens", request, TokenMade)
    if as_json:
        sys.stdout.write(json.dumps({"token": made.token, "expires": made.expires, "url": made.url}) + "\n")
        return
    sys.stdout.write(made.token + "\n")
    who = bound or "NAME"
    there, then = (
        "on the node",
        f"freehold node start --name {who} --coordinator {made.url} --join-file {who}.token --data NAME=FILE",
    )
    if role is not RoleName.node:
        there, then = f"there {who} says", f"freehold login --coordinator {made.url} --join-file {who}.token"
    errors().print(
        f"Until {_when(made.expires)}. Take it there as {who}.token by a way that you trust; then {there}:\n  {then}", style="dim"
    )


@token.command("list")
@grouped
def list_(where: CoordinatorOptions, as_json: AsJson = False) -> None:
    """List the tokens, without their secrets."""
    from freehold.wire.admin import Tokens

    found = admin(where).get("/v1/tokens", Tokens).tokens
    if as_json:
        told = [{name: getattr(each, name) for name in each.__struct_fields__ if name != "version"} for each in found]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.console import visible
    from freehold.cli.show import table

    lines = [["token", "for", "uses left", "expires", "state"]]
    lines += [[each.id, visible(_for(each)), str(each.uses), _when(each.expires), _state(each)] for each in found]
    table(lines, empty="No tokens.")


@token.command()
@grouped
def revoke(
    name: Annotated[str, typer.Argument(metavar="TOKEN", help="Its number, as `token list` shows it.")],
    where: CoordinatorOptions,
) -> None:
    """Withdraw a token: nobody joins with it any more. Nodes that did stay members."""
    from freehold.wire.admin import Done, Subject

    admin(where).post("/v1/tokens/revoke", Subject(name=name), Done)
    sys.stdout.write(f"Token {name} is revoked.\n")


def seconds(text: str) -> float:
    """ "24h" as seconds."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if not match or not int(match[1]):
        raise UsageError(f"{text!r} is no length of time.", hint="Write a whole number and s, m, h or d: 30m, 24h, 7d.")
    return float(int(match[1]) * _UNITS[match[2]])


def _when(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _for(token: TokenInfo) -> str:
    name = token.node or "any"
    return name if token.role == "node" else f"{token.role}/{name}"


def _state(token: TokenInfo) -> str:
    if token.revoked is not None:
        return "revoked"
    if token.expires < time.time():
        return "expired"
    return "open" if token.uses > 0 else "used"
