"""Who presents a certificate. TLS has verified its chain to a root of this federation; what TLS doesn't look at is here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast, get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.coordinator.certificates import Role
from freehold.errors import CertificateRefused


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The identity in a client certificate."""

    federation: str
    role: Role
    name: str
    serial: str
    key_digest: str
    not_before: float
    not_after: float

    @property
    def identity(self) -> str:
        """Role and name, as the deny list has them."""
        return f"{self.role}/{self.name}"

    def check(self, *, federation: str, now: float, roles: frozenset[Role] = frozenset({"node"})) -> None:
        """Raise CertificateRefused unless it is of this federation, in one of these roles, and valid now.

        TLS looks at dates only when a connection is made, and a connection may outlive a certificate.
        """
        if self.federation != federation:
            raise CertificateRefused(f"The certificate is of federation {self.federation!r}, this one is {federation!r}.")
        if self.role not in roles:
            raise CertificateRefused(f"The certificate is a {self.role}'s; this needs that of: {', '.join(sorted(roles))}.")
        if now >= self.not_after:
            raise CertificateRefused(
                "The certificate has expired.", hint="Ask for a new join token: `freehold token create --node NAME` makes one."
            )
        if now < self.not_before:
            raise CertificateRefused("The certificate is not valid yet.", hint="Set the clocks of both machines.")


def read_peer(der: bytes) -> Peer:
    """The identity in a certificate that TLS has verified; raises CertificateRefused when it holds none.

    It does when it has exactly one URI among its names, and that is `spiffe://<federation>/<role>/<name>`.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        scheme, _, federation, role, name = uri.split("/")
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, x509.ExtensionNotFound):
        scheme = role = ""
    if scheme != "spiffe:" or role not in get_args(Role):
        raise CertificateRefused("The certificate names no node, operator or researcher of a federation.")
    return Peer(
        federation=federation,
        role=cast(Role, role),
        name=name,
        serial=f"{certificate.serial_number:x}",
        key_digest=hashlib.sha256(spki).hexdigest(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )
