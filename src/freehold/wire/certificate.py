"""What a process without cryptography must know of a certificate: its public key's digest, its dates, its federation."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from freehold.errors import PinMismatch, WireError
from freehold.wire import jointoken

_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----\s[^-]+-----END CERTIFICATE-----")
_VERSION, _UTC_TIME, _GENERAL_TIME = 0xA0, 0x17, 0x18


class Outline(NamedTuple):
    """The parts of a certificate; nothing about them is verified."""

    not_before: float
    not_after: float
    """Unix time in seconds."""
    key_digest: bytes
    """SHA-256 of the SubjectPublicKeyInfo in DER."""


def blocks(pem: str) -> list[str]:
    """The certificates of a PEM bundle, each in PEM, in their order."""
    return [f"{block}\n" for block in _BLOCK.findall(pem)]


def outline(pem: str) -> Outline:
    """The outline of the first certificate in `pem`; raises WireError where there is none."""
    try:
        return _outline(ssl.PEM_cert_to_DER_cert(blocks(pem)[0].strip()))
    except (IndexError, ValueError):
        raise WireError("A certificate in PEM was expected, but it is not one.") from None


def pinned(roots: str, pin: str) -> str:
    """Those certificates of the bundle whose key the pin names; raises PinMismatch where there is none.

    The bundle came over a connection that nobody vouched for: whoever sent it may have put a root of their own beside the
    right one, so the others must not be trusted.
    """
    found = [block for block in blocks(roots) if jointoken.encode(outline(block).key_digest) == pin]
    if not found:
        raise PinMismatch(
            "The coordinator shows another root certificate than the one the join token names; nothing was sent to it.",
            hint="Check the coordinator's address, and that the token is of this federation.",
        )
    return "".join(found)


def federation_of(roots: str) -> str | None:
    """The federation that a root has among its names, as Freehold's own roots do; raises WireError for no root."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=roots)
    except (ssl.SSLError, ValueError):
        raise WireError("A root certificate in PEM was expected, but it is not one.") from None
    for root in context.get_ca_certs():
        for entry in root.get("subjectAltName", ()):
            match entry:
                case ("URI", str(uri)) if uri.startswith("spiffe://"):
                    return uri.removeprefix("spiffe://").partition("/")[0]
    return None


def _outline(der: bytes) -> Outline:
    (_, certificate, _), *_ = _items(der)
    (_, body, _), *_ = _items(certificate)
    fields = [item for item in _items(body) if item[0] != _VERSION]  # serial, algorithm, issuer, validity, subject, key
    first, last = (_time(tag, content) for tag, content, _ in _items(fields[3][1]))
    return Outline(first, last, hashlib.sha256(fields[5][2]).digest())


def _items(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, content and whole encoding of each element; IndexError and ValueError for what is not DER."""
    at = 0
    while at < len(der):
        tag, length, begin = der[at], der[at + 1], at + 2
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(der[at + 2 : begin], "big")
        end = begin + length
        if end > len(der):
            raise ValueError("an element is longer than what holds it")
        yield tag, der[begin:end], der[at:end]
        at = end


def _time(tag: int, content: bytes) -> float:
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERAL_TIME: "%Y%m%d%H%M%SZ"}.get(tag, "")
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
