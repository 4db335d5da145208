"""Certificates as the federation writes them: X.509 as Python's strictest verification wants it, names as SPIFFE has them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from freehold.coordinator.csr import PublicKey, Requested, key_digest
from freehold.errors import CoordinatorError
from freehold.wire.messages import NAME_PATTERN, Role

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

DAY_S = 86400.0
BACKDATED_S = 900.0
"""A certificate is valid from this long before it was made: a machine whose clock is 10 minutes slow must not refuse it."""


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A new certificate with those above it but the root, and what the coordinator remembers of it."""

    chain: str
    serial: str
    """In the hexadecimal form of `SSLSocket.getpeercert()`."""
    key_digest: str
    not_before: float
    not_after: float


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """A key and the CA certificate that belongs to it."""

    key: SigningKey
    certificate: x509.Certificate

    @classmethod
    def of(cls, key: object, certificate: x509.Certificate) -> Issuer:
        """The pair, checked: raises CoordinatorError when they do not belong together or may not sign."""
        checked = signing_key(key)
        if checked.public_key() != certificate.public_key():
            raise CoordinatorError(
                "The issuer's key does not belong to its certificate.", hint="Put the two that match into one file."
            )
        try:
            may_sign = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            may_sign = False
        if not may_sign:
            raise CoordinatorError(
                "The issuer's certificate may not sign others (its CA flag is not set).", hint="Use that of a CA."
            )
        return cls(key=checked, certificate=certificate)


def signing_key(key: object) -> SigningKey:
    """The key, if it is of a kind that can sign certificates here; raises CoordinatorError for another."""
    if not isinstance(key, SigningKey):
        raise CoordinatorError("The issuer's key is of another kind than EC, Ed25519 or RSA.", hint="Use one of those.")
    return key


def root(key: SigningKey, *, federation: str, now: float, lifetime_s: float) -> x509.Certificate:
    """A self-signed root. It names its federation, so that a join token need not."""
    builder = _builder(f"{federation} root", key.public_key(), None, now, now + lifetime_s)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{check_name(federation)}")])
    return _sign(_as_ca(builder, 1).add_extension(names, critical=False), key)


def intermediate(issuer: Issuer, key: PublicKey, *, federation: str, now: float, lifetime_s: float) -> x509.Certificate:
    """A CA below `issuer` that signs leaves only."""
    return _sign(_as_ca(_builder(f"{federation} issuer", key, issuer, now, now + lifetime_s), 0), issuer.key)


def node(
    issuer: Issuer, above: str, requested: Requested, *, federation: str, role: Role, name: str, now: float, lifetime_s: float
) -> Issued:
    """A client certificate for `spiffe://<federation>/<role>/<name>`."""
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"spiffe://{check_name(federation)}/{role}/{check_name(name)}")
    ]
    return _leaf(issuer, above, requested.key, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, now, lifetime_s)


def server(
    issuer: Issuer, above: str, key: PublicKey, *, federation: str, hosts: Sequence[str], now: float, lifetime_s: float
) -> Issued:
    """A server certificate for these names and addresses; the first also names it in `spiffe://<federation>/coordinator/<host>`."""
    # A colon, as in an IPv6 address, is not a character of SPIFFE paths.
    uri = f"spiffe://{check_name(federation)}/coordinator/{hosts[0].replace(':', '-')}"
    names = [*map(_host, hosts), x509.UniformResourceIdentifier(uri)]
    return _leaf(issuer, above, key, "coordinator", names, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime_s)


def due(certificate: x509.Certificate) -> float:
    """When 2/3 of its life are over."""
    begin, end = (when.timestamp() for when in (certificate.not_valid_before_utc, certificate.not_valid_after_utc))
    return begin + (end - begin) * 2 / 3


def key_pem(key: SigningKey) -> str:
    """A private key in PEM, for a file that only its owner can read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _leaf(
    issuer: Issuer,
    above: str,
    key: PublicKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: float,
    lifetime_s: float,
) -> Issued:
    latest = issuer.certificate.not_valid_after_utc.timestamp()
    if now >= latest:
        raise CoordinatorError(
            "The certificate that this coordinator signs with has expired.",
            hint="Bring the root's key back and start the coordinator again: it renews its issuer.",
        )
    certificate = _sign(
        _builder(common_name, key, issuer, now, min(now + lifetime_s, latest))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False),
        issuer.key,
    )
    return Issued(
        chain=certificate.public_bytes(Encoding.PEM).decode() + above,
        serial=certificate.serial_number.to_bytes(20, "big").lstrip(b"\0").hex().upper(),
        key_digest=key_digest(key),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _builder(common_name: str, key: PublicKey, issuer: Issuer | None, now: float, not_after: float) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())  # 159 bits
        .not_valid_before(datetime.fromtimestamp(int(now - BACKDATED_S), UTC))
        .not_valid_after(datetime.fromtimestamp(int(not_after), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    return builder.add_extension(_issuer_key(issuer), critical=False) if issuer else builder


def _issuer_key(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _as_ca(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True).add_extension(
        _usage(leaf=False), critical=True
    )


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise CoordinatorError(
            f"{host!r} is no host name.", hint="Write an international name in its ASCII form, xn--..."
        ) from None


def check_name(name: str) -> str:
    """The name, fit to stand in an identity (a slash in it would make another one); raises CoordinatorError for another."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise CoordinatorError(
            f"{name!r} is not a name.",
            hint="Use 1 to 63 lower-case letters, digits and hyphens, a letter or digit first and last.",
        )
    return name
