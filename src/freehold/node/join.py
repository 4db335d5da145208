"""How a node joins a federation and stays in it. The secret is sent only to a coordinator that the token's pin vouches for.

In this order: the token is parsed; the roots are fetched over a connection that proves nothing; those that the pin doesn't name
are thrown away; then, over TLS that trusts only the rest, the secret and the certificate request are sent.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Protocol

from freehold.errors import JoinTokenError, PinMismatch, UsageError, WireError
from freehold.node import credentials
from freehold.node.credentials import Credentials, Membership
from freehold.wire import client, spki
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Certificate, EnrollRequest, Message, RenewRequest
from freehold.wire.routes import ENROLL, RENEW, Route

_LONGEST_TOKEN = 4096


class CoordinatorClient(Protocol):
    """What joining needs of the network. Both raise Unreachable, or the error that the coordinator answered with."""

    def fetch_roots(self, url: str, pin: str) -> str:
        """The coordinator's roots in PEM, over TLS that verifies nothing; the pin may be checked here already."""

    def ask(self, url: str, route: Route, message: Message, *, roots: str, pair: Path | None) -> Certificate:
        """The answer to a message over TLS that trusts these roots alone, with the key and certificate in `pair`."""


class Network:
    """The real one."""

    def __init__(self, meter: client.Meter | None = None) -> None:
        self._meter = meter

    def fetch_roots(self, url: str, pin: str) -> str:
        """See CoordinatorClient."""
        return client.fetch_roots(url, pin, meter=self._meter)

    def ask(self, url: str, route: Route, message: Message, *, roots: str, pair: Path | None) -> Certificate:
        """See CoordinatorClient."""
        connection = client.Connection(url, client.trusting(roots, (pair, pair) if pair else None), meter=self._meter)
        try:
            return connection.post(route.path, message, Certificate, repeatable=route.repeatable)
        finally:
            connection.close()


def read_token(source: Path | str) -> JoinToken:
    """The token in a file, or on standard input for "-": never an argument, which every process of the machine can read."""
    try:
        if str(source) == "-":
            return JoinToken.parse(sys.stdin.read(_LONGEST_TOKEN))
        with open(source, encoding="utf-8") as file:
            return JoinToken.parse(file.read(_LONGEST_TOKEN))
    except OSError as error:
        raise JoinTokenError(
            f"The join token's file cannot be read: {error.strerror}.", hint="Give --join-file FILE, or - for standard input."
        ) from None
    except UnicodeDecodeError:
        raise JoinTokenError("The join token's file is not text.", hint="It holds one line, beginning with fh1.") from None


def join(
    state: Path, token: JoinToken, *, url: str, node: str, network: CoordinatorClient, federation: str | None = None
) -> Credentials:
    """Make this node a member, and return its identity, on the disk.

    May be called again after any failure: an answer that was lost is given again. `federation` is held against what the
    coordinator says. Raises PinMismatch before anything was sent to the wrong coordinator.
    """
    _check_other_membership(state, federation, node)
    roots = pinned(network.fetch_roots(url, token.pin), token.pin)
    found = federation or federation_of(roots)
    _check_other_membership(state, found, node)
    # Named by the token, so that with the same token the same key is used: then the coordinator knows a repeated request.
    key = credentials.folder_of(state) / f"joining-{token.id}.key"
    credentials.sweep(state, keep=key)
    request = credentials.request("csr" if key.exists() else "new-key", key, node)
    message = EnrollRequest(federation=found, node=node, token_id=token.id, secret=token.secret, csr=request)
    answer = network.ask(url, ENROLL, message, roots=roots, pair=None)
    return credentials.install(state, key, answer, Membership(federation=found or answer.federation, node=node, url=url))


def renew(state: Path, network: CoordinatorClient) -> Credentials:
    """Replace this node's certificate by one with a new key; the old one stays in place until then, and after any failure."""
    current = credentials.load(state)
    member = current.membership
    key = credentials.folder_of(state) / "renewing.key"
    credentials.sweep(state, keep=current.pair)
    message = RenewRequest(csr=credentials.request("new-key", key, member.node))
    answer = network.ask(member.url, RENEW, message, roots=current.roots.read_text(encoding="ascii"), pair=current.pair)
    return credentials.install(state, key, answer, member)


def pinned(roots: str, pin: str) -> str:
    """Those of the bundle that the pin names. Whoever sent it may have put a root of their own beside the right one."""
    found = [root for root in spki.certificates(roots) if spki.digest(root) == pin]
    if not found:
        raise PinMismatch(
            "The coordinator shows another root certificate than the one the join token names; nothing was sent to it.",
            hint="Check the coordinator's address, and that the token is of this federation.",
        )
    return "".join(found)


def federation_of(roots: str) -> str | None:
    """The federation that a root has among its names, as Freehold's own roots do; None for another's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=roots)
    except (ssl.SSLError, ValueError):
        raise WireError("The coordinator's root certificate cannot be read.", hint="Check the coordinator's address.") from None
    for root in context.get_ca_certs():
        for entry in root.get("subjectAltName", ()):
            match entry:
                case ("URI", str(uri)) if uri.startswith("spiffe://"):
                    return uri.removeprefix("spiffe://").partition("/")[0]
    return None


def _check_other_membership(state: Path, federation: str | None, node: str) -> None:
    if not (state / "identity" / "current.pem").exists():
        return
    member = credentials.load(state).membership
    if member.node != node or federation not in (None, member.federation):
        raise UsageError(
            f"This node is already {member.node!r} in federation {member.federation!r}.",
            hint="Give a new node another --state folder, or leave first: `freehold node leave`.",
        )
