"""`freehold login`: a person's certificate, by which a coordinator elsewhere is asked; kept, and renewed when it is used."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.places import IdentityFolder
from freehold.errors import FreeholdError, NotJoined
from freehold.settings import config_home

if TYPE_CHECKING:
    from freehold.node.credentials import Credentials
    from freehold.node.join import CoordinatorClient
    from freehold.wire.adminroutes import RemoteAdmin
    from freehold.wire.jointoken import JoinToken

RENEW_AFTER = 1 / 3
"""Of a certificate's life. People come by chance: who comes at least once in the rest of it needs no other token."""


def login(
    coordinator: Annotated[str, typer.Option("--coordinator", metavar="URL", help="Where it is.")],
    join_file: Annotated[str, typer.Option("--join-file", metavar="FILE", help="The token's file; - is standard input.")],
    identity: IdentityFolder = None,
    federation: Annotated[
        str | None, typer.Option("--federation", metavar="NAME", help="Its name; no other one is joined.")
    ] = None,
) -> None:
    """Become an operator or a researcher of a coordinator elsewhere, with a token from `freehold token create --role`.

    Then `freehold study`, `status`, `token` and `node list` take `--coordinator URL`. An earlier login under the same name,
    on whichever machine, is over.
    """
    from freehold.cli.console import visible
    from freehold.node.join import Network, read_token

    token = read_token(join_file)
    folder = identity_folder(coordinator, identity)
    with held(folder):
        found = sign_in(folder, token, url=coordinator, network=Network(), federation=federation)
    member, until = found.membership, time.strftime("%Y-%m-%d %H:%M", time.localtime(found.not_after))
    sys.stdout.write(
        f"You are {visible(f'{member.role} {member.node}')} in {visible(member.federation)}, until {until}; using it renews it.\n"
        f"  identity  {folder}\n"
        f"Next: freehold status --coordinator {coordinator}{f' --identity {identity}' if identity else ''}\n"
    )


def sign_in(
    folder: Path, token: JoinToken, *, url: str, network: CoordinatorClient, federation: str | None = None
) -> Credentials:
    """A person's identity for a token, on the disk. Its secret goes only to a coordinator that the token's pin vouches for.

    May be called again after any failure: an answer that was lost is given again.
    """
    from freehold.node import credentials
    from freehold.node.join import federation_of, pinned
    from freehold.wire.messages import LoginRequest
    from freehold.wire.routes import LOGIN

    roots = pinned(network.fetch_roots(url, token.pin), token.pin)
    found = federation or federation_of(roots)
    key = credentials.folder_of(folder) / f"joining-{token.id}.key"
    credentials.sweep(folder, keep=key)
    request = credentials.request("csr" if key.exists() else "new-key", key, "person")
    message = LoginRequest(federation=found, token_id=token.id, secret=token.secret, csr=request)
    answer = network.ask(url, LOGIN, message, roots=roots, pair=None)
    member = credentials.Membership(federation=found or answer.federation, node=answer.node, url=url, role=answer.role)
    return credentials.install(folder, key, answer, member)


def remote(url: str, identity: Path | None) -> RemoteAdmin:
    """The administration of a coordinator elsewhere; raises NotJoined without an identity that it could take."""
    from freehold.wire.adminroutes import RemoteAdmin
    from freehold.wire.client import Connection, Timeouts, parts_of, trusting

    parts_of(url)  # before it is said that there is no identity for what is no address
    folder = identity_folder(url, identity)
    found = current(folder)
    trust = trusting(found.roots.read_text(encoding="ascii"), (found.pair, found.pair))
    # Starting a study runs its algorithm's own code, which may have to load.
    return RemoteAdmin(Connection(url, trust, timeouts=Timeouts(read_s=120.0), any_error=True))


def current(folder: Path) -> Credentials:
    """The identity in a folder, renewed first when that is due; one that cannot be renewed now is good until it expires.

    Raises NotJoined, and CertificateUnfit for one that others than its owner may read or write.
    """
    from freehold.node import credentials
    from freehold.node.join import Network, renew
    from freehold.wire.ownfiles import check_private

    if not (folder / "identity" / "current.pem").exists():
        raise NotJoined(f"There is no identity in {folder}.", hint=_HOW)
    found = credentials.load(folder)
    check_private(found.pair)
    if _due(found):
        with held(folder):
            found = credentials.load(folder)  # somebody else may have renewed it meanwhile
            if _due(found):
                try:
                    found = renew(folder, Network())
                except FreeholdError:
                    if time.time() >= found.not_after:
                        raise NotJoined(f"The certificate in {folder} has expired.", hint=_HOW) from None
    return found


def identity_folder(url: str, given: Path | None) -> Path:
    """Where the identity for a coordinator is kept."""
    if given is not None:
        return given.absolute()
    place = urllib.parse.urlsplit(url).netloc.rpartition("@")[2].lower()
    return config_home(os.environ) / (re.sub(r"[^a-z0-9.-]+", "_", place) or "coordinator")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Wait for other commands that write to the identity, and keep them waiting."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _due(found: Credentials) -> bool:
    return time.time() >= found.not_before + (found.not_after - found.not_before) * RENEW_AFTER


_HOW = "An operator makes a token with `freehold token create --role`; then `freehold login --coordinator URL --join-file FILE`."
