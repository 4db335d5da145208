"""The files by which a node is known, and knows its coordinator. Standard library only, since the agent works with them.

    <state>/identity/current.pem        key and certificate chain in one file, so that they are replaced together
    <state>/identity/roots.pem          whom to trust as coordinator
    <state>/identity/federation.json    which federation, under which name, at which address
    <state>/identity/joining-*.key      a key whose certificate has been asked for; renewing.key likewise
    <state>/identity/outside.json       in place of these: where files lie that somebody else renews, see `node.outside`

A node has joined when current.pem is there: it is written last, under its final name only once it is whole.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from freehold import durable
from freehold.errors import NodeError, NotJoined, WireError
from freehold.wire import spki
from freehold.wire.messages import Certificate

CHILD_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Which federation a node is in, under which name, and where its coordinator is."""

    federation: str
    node: str
    url: str
    role: str = "node"
    """operator or researcher: then `node` is a person's name."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A joined node's identity."""

    membership: Membership
    pair: Path
    """Key and certificate chain, for `SSLContext.load_cert_chain`."""
    roots: Path
    """For `SSLContext.load_verify_locations`."""
    not_before: float
    not_after: float
    outside_key: Path | None = None
    """The key, where it does not lie in `pair`, since somebody else gave and renews both."""

    @property
    def files(self) -> tuple[Path, Path]:
        """Certificate and key."""
        return self.pair, self.outside_key or self.pair


def folder_of(state: Path) -> Path:
    """Where a node's identity lies, made if it is not there."""
    folder = state / "identity"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def load(state: Path) -> Credentials:
    """The identity of the node whose state is in this folder; raises NotJoined when it has none. It may have expired."""
    folder = state / "identity"
    if (folder / "outside.json").exists():
        from freehold.node import outside

        return outside.load(state)
    try:
        chain = spki.certificates((folder / "current.pem").read_text(encoding="ascii"))
        not_before, not_after = spki.dates(chain[0])
        membership = Membership(**json.loads((folder / "federation.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotJoined("This node has not joined a federation.", hint="Start it with --coordinator and --join-file.") from None
    except (IndexError, TypeError, ValueError, WireError):
        raise NodeError(
            f"The identity in {folder} is damaged.", hint="Restore it, or delete the folder and join again."
        ) from None
    return Credentials(
        membership=membership,
        pair=folder / "current.pem",
        roots=folder / "roots.pem",
        not_before=not_before,
        not_after=not_after,
    )


def request(action: Literal["new-key", "csr"], key: Path, node: str) -> str:
    """A certificate request from a child process, for a new key written to `key` or for the one that is there."""
    command = [sys.executable, "-P", "-m", "freehold.node.identity", action, str(key), node]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NodeError(f"Making a key took more than {CHILD_TIMEOUT_S:.0f} s.", hint="Is the machine overloaded?") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise NodeError(f"The key could not be made: {reason[0]}", hint=f"Is {key.parent} writable, and is there space?")
    return done.stdout


def install(state: Path, key: Path, answer: Certificate, membership: Membership) -> Credentials:
    """Make the certificate in `answer`, with the private key in `key`, this node's identity; until then the old one stays.

    Raises NodeError, and changes nothing, when the two don't belong together or the certificate is another node's.
    """
    folder = folder_of(state)
    if (answer.federation, answer.role, answer.node) != (membership.federation, membership.role, membership.node):
        raise NodeError(
            f"The coordinator answered with a certificate for {answer.role} {answer.node!r} in {answer.federation!r}.",
            hint=f"Asked for was {membership.role} {membership.node!r} in {membership.federation!r}; is it set up twice?",
        )
    pair = folder / "next.pem"
    durable.write(pair, (key.read_text(encoding="ascii") + answer.chain).encode(), point="node.identity.next")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(pair)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=answer.roots)
    except (ssl.SSLError, ValueError):
        pair.unlink()
        raise NodeError(
            "The coordinator answered with a certificate that this node cannot use.", hint="Try to join again."
        ) from None
    # New roots hold the old ones too while a root is being replaced, so whatever is installed when the power fails fits.
    durable.write(folder / "roots.pem", answer.roots.encode(), point="node.identity.roots")
    durable.write(folder / "federation.json", (json.dumps(asdict(membership)) + "\n").encode(), point="node.identity.federation")
    durable.name(pair, folder / "current.pem", point="node.identity.current")
    key.unlink(missing_ok=True)
    return load(state)


def sweep(state: Path, *, keep: Path) -> None:
    """Remove what an interrupted join or renewal left behind, but not the key it may go on with."""
    for left in [*folder_of(state).glob(".*.part"), *folder_of(state).glob("*.key"), state / "identity" / "next.pem"]:
        if left != keep:
            left.unlink(missing_ok=True)


def renew_at(not_before: float, not_after: float, random: float) -> float:
    """When to renew: after 2/3 of a certificate's life and, by `random` in [0, 1), up to a tenth of it: not all at once."""
    return not_before + (not_after - not_before) * (2 / 3 + random / 10)
