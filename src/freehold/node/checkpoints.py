"""What the coordinator has witnessed of this node's ledger: <state>/ledger/checkpoint.json, the furthest head, countersigned.

The node's own signature is in it, so the coordinator cannot make one up; the coordinator's, with its certificate, is in it too,
so whoever trusts the federation's roots can check it later, without a network.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from freehold import durable
from freehold.errors import CheckpointRefused, FreeholdError
from freehold.node.lines import Head, unusable
from freehold.wire.messages import Countersigned

FILE = "checkpoint.json"
_LONGEST_CHAIN = 8


def load(folder: Path) -> Countersigned | None:
    """The checkpoint in a ledger's folder; None if there is none yet. Raises CheckpointRefused for one that cannot be read."""
    try:
        return parse((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(folder, error) from None


def parse(body: bytes) -> Countersigned:
    """A checkpoint that was read; raises CheckpointRefused for what is none."""
    try:
        return msgspec.json.decode(body, type=Countersigned)
    except (ValueError, msgspec.MsgspecError):
        raise _refused("it cannot be read") from None


def keep(folder: Path, checkpoint: Countersigned) -> None:
    """Put it on the disk; raises LedgerError."""
    try:
        durable.write(folder / FILE, msgspec.json.encode(checkpoint) + b"\n", point="node.checkpoint")
    except OSError as error:
        raise unusable(folder, error) from None


def check(checkpoint: Countersigned, roots: str, *, node: str | None = None) -> Head | None:
    """What it vouches for, None if the coordinator knows no head.

    Raises CheckpointRefused unless both signatures hold and the coordinator's certificate leads to these roots, in PEM.
    """
    if node is not None and checkpoint.node != node:
        raise _refused(f"it is that of node {checkpoint.node}")
    head = checkpoint.head
    if head is not None and not _is_own(head.key, head.signature, head.body()):
        raise _refused("the node's signature does not hold")
    try:
        chain = x509.load_pem_x509_certificates(checkpoint.chain.encode())
        trusted = x509.load_pem_x509_certificates(roots.encode())
    except ValueError:
        raise _refused("its certificates cannot be read") from None
    if not _leads(chain, trusted, checkpoint.time):
        raise _refused("its certificate is not that of a coordinator of this federation")
    if not _holds(chain[0], bytes.fromhex(checkpoint.signature), checkpoint.body()):
        raise _refused("the coordinator's signature does not hold")
    return None if head is None else Head(head.n, head.hash)


def roots_of(state: Path) -> str:
    """The roots that a node trusts as coordinator; raises NotJoined."""
    from freehold.node import credentials

    try:
        return credentials.load(state).roots.read_text(encoding="ascii")
    except OSError as error:
        raise unusable(state, error) from None


def _is_own(key: str, signature: str, body: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), body)
    except (InvalidSignature, ValueError):
        return False
    return True


def _leads(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], when: float) -> bool:
    """Whether the first is a server's, and each is signed by the next, up to a root; all at that time."""
    if not 1 <= len(chain) <= _LONGEST_CHAIN or not _serves(chain[0]):
        return False
    try:
        at = datetime.datetime.fromtimestamp(when, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return False
    above = [*chain[1:], *roots]
    below = chain[0]
    for _ in range(_LONGEST_CHAIN + 1):
        if not below.not_valid_before_utc <= at <= below.not_valid_after_utc:
            return False
        if below in roots:
            return True
        issuer = next((each for each in above if _issued(below, each)), None)
        if issuer is None:
            return False
        below = issuer
    return False


def _serves(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usage


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
        return above.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def _holds(leaf: x509.Certificate, signature: bytes, body: bytes) -> bool:
    try:
        key = leaf.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, body, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, body, padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size), hashes.SHA256())
        elif isinstance(key, Ed25519PublicKey):
            key.verify(signature, body)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _refused(why: str) -> FreeholdError:
    return CheckpointRefused(
        f"This is no checkpoint of the ledger: {why}.", hint="`freehold ledger verify --coordinator` asks for the latest."
    )
