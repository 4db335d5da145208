"""A node's keys. A process of its own, `python -m freehold.node.identity`, so that the agent never loads cryptography.

    new-key FILE NAME    write a new private key to FILE, and print a certificate request
    csr FILE NAME        print a certificate request for the key that is in FILE

The private key is on the disk, readable by its owner alone, before anybody hears of its public half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from freehold import durable
from freehold.errors import NodeError


def new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A new P-256 key, in `path` once this returns."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    durable.write(path, pem, point="node.identity.key")
    return key


def old_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that `new_key` left in `path`; raises NodeError for anything else."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NodeError(
            f"There is no usable private key in {path}.", hint="Delete the file and try again; a new one will be made."
        )
    return key


def csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate request in PEM, signed with the key it names. The name is for people: the coordinator doesn't look at it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m freehold.node.identity", description="Make a node's key and certificate request."
    )
    parser.add_argument("action", choices=("new-key", "csr"))
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    chosen = parser.parse_args(arguments)
    try:
        key = new_key(chosen.file) if chosen.action == "new-key" else old_key(chosen.file)
    except (NodeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(csr(key, chosen.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
