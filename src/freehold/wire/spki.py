"""What a process without cryptography reads of a certificate: its key's digest, which a join token pins, dates and URIs."""

from __future__ import annotations

import hashlib
import re
import ssl
from datetime import UTC, datetime
from typing import Final

from freehold.errors import WireError

_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_EXTENSIONS, _BOOLEAN, _OCTETS, _URI = 0xA3, 0x01, 0x04, 0x86
_NAMES: Final = bytes.fromhex("0603551d11")  # the object identifier of subjectAltName
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?")


def certificates(pem: str) -> list[str]:
    """Each certificate of a PEM text by itself."""
    return _CERTIFICATE.findall(pem.replace("\r\n", "\n"))


def digest(pem: str) -> str:
    """SHA-256 of the SubjectPublicKeyInfo of one certificate, lower-case hexadecimal; raises WireError unless it is one."""
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        raise _malformed() from None
    return hashlib.sha256(public_key(der)).hexdigest()


def public_key(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, both in DER; raises WireError."""
    # Before it: the serial number, the signature's algorithm, the issuer, the dates and the subject.
    at, end = _field(der, (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE))
    return der[at : _element(der, at, end, _SEQUENCE)[1]]


def dates(pem: str) -> tuple[float, float]:
    """From when until when one certificate is valid, in Unix time; raises WireError unless it is one."""
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        begin, end = _element(der, *_field(der, (_INTEGER, _SEQUENCE, _SEQUENCE)), _SEQUENCE)
        found = []
        while begin < end:
            tag = der[begin]
            start, begin = _element(der, begin, end, tag)
            found.append(datetime.strptime(der[start:begin].decode("ascii"), _TIMES[tag]).replace(tzinfo=UTC).timestamp())
        not_before, not_after = found
    except (ValueError, KeyError):
        raise _malformed() from None
    return not_before, not_after


def uris(pem: str) -> list[str]:
    """The URIs among the names of one certificate; raises WireError unless it is one."""
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        at, end = _field(der, (_INTEGER, *[_SEQUENCE] * 5))
        while at < end and der[at] != _EXTENSIONS:
            _, at = _element(der, at, end, der[at])
        found: list[str] = []
        if at == end:
            return found
        at, end = _element(der, *_element(der, at, end, _EXTENSIONS), _SEQUENCE)
        while at < end:
            inner, at = _element(der, at, end, _SEQUENCE)
            if der[inner : inner + len(_NAMES)] != _NAMES:
                continue
            inner += len(_NAMES)
            if der[inner] == _BOOLEAN:  # whether it is critical
                _, inner = _element(der, inner, at, _BOOLEAN)
            inner, last = _element(der, *_element(der, inner, at, _OCTETS), _SEQUENCE)
            while inner < last:
                tag = der[inner]
                start, inner = _element(der, inner, last, tag)
                if tag == _URI:
                    found.append(der[start:inner].decode("ascii"))
        return found
    except (ValueError, IndexError):
        raise _malformed() from None


def _field(der: bytes, before: tuple[int, ...]) -> tuple[int, int]:
    """Where the field of a certificate's body that comes after these begins, and where the body ends."""
    begin, end = _element(der, 0, len(der), _SEQUENCE)
    if end != len(der):
        raise _malformed()
    at, end = _element(der, begin, end, _SEQUENCE)
    if der[at : at + 1] == bytes([_VERSION]):
        _, at = _element(der, at, end, _VERSION)
    for tag in before:
        _, at = _element(der, at, end, tag)
    return at, end


def _element(der: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends; it must have that tag and lie below `limit`."""
    head = der[at : min(at + 2, limit)]
    if len(head) < 2 or head[0] != tag:
        raise _malformed()
    begin, size = at + 2, head[1]
    if size >= 0x80:
        count = size - 0x80
        octets = der[begin : min(begin + count, limit)]
        size = int.from_bytes(octets, "big")
        # DER has one way to write a length: the shortest. 0x80 alone, an indefinite length, is BER.
        if not 1 <= count <= 4 or len(octets) != count or size < 0x80 or octets[0] == 0:
            raise _malformed()
        begin += count
    if begin + size > limit:
        raise _malformed()
    return begin, begin + size


def _malformed() -> WireError:
    return WireError("A certificate was expected, but the bytes are not one.", hint="Check the address of the coordinator.")
