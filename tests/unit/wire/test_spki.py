from __future__ import annotations

import datetime
import hashlib
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import WireError
from freehold.wire import spki

KINDS = ["rsa", "ec", "ed25519"]


@cache
def certificate(kind: str) -> x509.Certificate:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    if kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    elif kind == "ec":
        key = ec.generate_private_key(ec.SECP384R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root " * 10)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2026, 1, 1))
        .not_valid_after(datetime.datetime(2096, 1, 1))
        .sign(key, None if kind == "ed25519" else hashes.SHA256())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_is_that_of_the_public_key(kind: str) -> None:
    key = certificate(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki.public_key(certificate(kind).public_bytes(Encoding.DER)) == key
    assert spki.digest(certificate(kind).public_bytes(Encoding.PEM).decode()) == hashlib.sha256(key).hexdigest()


@given(st.sampled_from(KINDS), st.integers(0), st.binary(max_size=8), st.booleans())
def test_damaged_bytes_are_refused_or_read_within_their_bounds(kind: str, at: int, junk: bytes, cut: bool) -> None:
    der = certificate(kind).public_bytes(Encoding.DER)
    at %= len(der)
    damaged = der[:at] if cut else der[:at] + junk + der[at + len(junk) :]
    try:
        assert spki.public_key(damaged) in damaged
    except WireError:
        return
    assert not cut


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x30\x80\x00\x00",
        b"\x30\x81\x01\x00",
        b"\x30\x85\x00\x00\x00\x00\x01",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x31\x00",
    ],
)
def test_what_is_not_der_is_refused(der: bytes) -> None:
    with pytest.raises(WireError):
        spki.public_key(der)


def test_a_length_that_is_not_the_shortest_and_bytes_left_over_are_refused() -> None:
    der = certificate("ec").public_bytes(Encoding.DER)
    assert der[:2] == b"\x30\x82"
    for wrong in (b"\x30\x83\x00" + der[2:], der + b"\x00"):
        with pytest.raises(WireError):
            spki.public_key(wrong)


def test_a_text_is_split_into_its_certificates() -> None:
    pems = [certificate(kind).public_bytes(Encoding.PEM).decode() for kind in KINDS]
    assert spki.certificates("junk\n" + "\r\n".join(pems).replace("\n", "\r\n")) == pems
    assert spki.certificates("-----BEGIN CERTIFICATE-----\n") == []
    with pytest.raises(WireError):
        spki.digest("no PEM")
