"""What the coordinator takes from a certificate request: its public key, once its owner has proved to hold the other half."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.errors import CsrRefused

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

_HINT = "`freehold node start` makes a request with a key that fits; do not write one by hand."
_RSA_BITS = range(2048, 8193)  # a larger key only costs the coordinator time


class Requested(NamedTuple):
    """The public key of a certificate request, and the SHA-256 of its SubjectPublicKeyInfo."""

    key: PublicKey
    digest: str


def read(csr: str) -> Requested:
    """The key of a request in PEM whose signature is right and whose key TLS 1.3 takes; raises CsrRefused for another.

    Names and extensions in the request are not looked at: who a node is follows from its token or its last certificate.
    """
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        acceptable = _acceptable(key)
        signed = acceptable is not None and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CsrRefused("The certificate request cannot be read.", hint=_HINT) from None
    if acceptable is None:
        raise CsrRefused(
            "The certificate request's key is not EC P-256, P-384, Ed25519, or RSA of 2048 to 8192 bits.", hint=_HINT
        )
    if not signed:
        raise CsrRefused("The certificate request is not signed with the key it names.", hint=_HINT)
    return Requested(acceptable, key_digest(acceptable))


def key_digest(key: PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _acceptable(key: object) -> PublicKey | None:
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()) | ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey(key_size=bits) if bits in _RSA_BITS:
            return key
    return None
