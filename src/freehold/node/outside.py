"""An identity that the organisation's own CA gave this node, and that others renew: cert-manager, step-ca, a person.

<state>/identity/outside.json says where its files lie. They are read at each new connection, and looked at in between. Standard
library only.
"""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path

from freehold import durable
from freehold.errors import CertificateUnfit, NodeError, WireError
from freehold.node.credentials import Credentials, Membership, folder_of
from freehold.wire import spki
from freehold.wire.ownfiles import check_private, read_file

_NAME = re.compile(r"spiffe://([a-z0-9-]{1,63})/node/([a-z0-9-]{1,63})")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where they lie, and where the coordinator is."""

    cert: Path
    """The node's certificate, then those above it."""
    key: Path
    ca: Path
    """Roots: whom to trust as coordinator."""
    url: str


def read(files: Files) -> Credentials:
    """The identity in these files, checked; raises CertificateUnfit. It may have expired."""
    chain = spki.certificates(read_file(files.cert).decode("ascii", "replace"))
    check_private(files.key)
    try:
        not_before, not_after = spki.dates(chain[0])
        names = spki.uris(chain[0])
    except (IndexError, WireError):
        raise CertificateUnfit(f"{files.cert} holds no certificate in PEM.", hint="It begins with the node's own.") from None
    found = _NAME.fullmatch(names[0]) if len(names) == 1 else None
    if found is None:
        raise CertificateUnfit(
            f"The certificate in {files.cert} does not name a node: its URIs are {', '.join(names) or 'none'}.",
            hint="Have it issued with subjectAltName=URI:spiffe://FEDERATION/node/NAME, and no other URI.",
        )
    _check_usable(files)
    return Credentials(
        membership=Membership(federation=found[1], node=found[2], url=files.url),
        pair=files.cert,
        roots=files.ca,
        not_before=not_before,
        not_after=not_after,
        outside_key=files.key,
    )


def keep(state: Path, files: Files) -> None:
    """Remember where they lie, so that other commands and the next start find them."""
    told = {name: str(value) for name, value in asdict(files).items()}
    durable.write(folder_of(state) / "outside.json", (json.dumps(told) + "\n").encode(), point="node.outside")


def load(state: Path) -> Credentials:
    """The identity that is remembered."""
    path = state / "identity" / "outside.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        files = Files(cert=Path(told["cert"]), key=Path(told["key"]), ca=Path(told["ca"]), url=told["url"])
    except (ValueError, KeyError, TypeError):
        raise NodeError(f"{path} is damaged.", hint="Delete it, and start with --cert, --key and --ca.") from None
    return read(files)


def version(found: Credentials) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file is replaced or written; shorter while one is not there."""
    told = []
    for path in (*found.files, found.roots):
        try:
            now = path.stat()
        except OSError:
            continue
        told.append((now.st_ino, now.st_mtime_ns, now.st_size))
    return tuple(told)


def _check_usable(files: Files) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files.cert, files.key, password=_no_passphrase)
    except (ssl.SSLError, OSError, ValueError):
        raise CertificateUnfit(
            f"The key in {files.key} does not belong to the first certificate in {files.cert}, or cannot be read.",
            hint="Give the two that were made together, as PEM, the key without a passphrase.",
        ) from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=read_file(files.ca).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise CertificateUnfit(f"{files.ca} holds no certificate in PEM.", hint="Give the coordinator's roots.") from None


def _no_passphrase() -> str:
    raise ValueError("a passphrase is asked for")
