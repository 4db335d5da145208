"""Who may speak: the role, federation and dates of a certificate, whether it was given out here, and the deny list."""

from __future__ import annotations

import ssl

from freehold.coordinator.enrolment_records import EnrolmentRecords
from freehold.errors import CertificateRefused, Denied
from freehold.wire import spki
from freehold.wire.messages import Role
from freehold.wire.server import Identity


def admit(records: EnrolmentRecords, peer: Identity, federation: str, now: float, roles: frozenset[Role]) -> None:
    """Raise as `check_peer`, and Denied for a serial or an identity that is on the deny list."""
    check_peer(peer, federation, now, roles)
    if records.denied(*names_of(peer)) is not None:
        raise Denied(f"{peer.role}/{peer.name} is on the deny list.", hint="It left, was replaced, or the operator denied it.")


def names_of(peer: Identity) -> tuple[str, ...]:
    """What may stand for it on the deny list: its identity, or its serial, of which some programs leave out a first zero."""
    return peer.serial, peer.serial.removeprefix("0"), f"{peer.role}/{peer.name}"


def check_peer(peer: Identity, federation: str, now: float, roles: frozenset[Role]) -> None:
    """Raise CertificateRefused unless this is one of these roles in this federation, within its dates.

    TLS has verified the chain, and the dates when the connection was made; a connection may outlive a certificate.
    """
    if peer.federation != federation:
        raise CertificateRefused(
            f"The certificate is of federation {peer.federation!r}, this one is {federation!r}.",
            hint="Join with a token of this one.",
        )
    if peer.role not in roles:
        raise CertificateRefused(
            f"The certificate is a {peer.role}'s; this needs that of: {', '.join(sorted(roles))}.",
            hint=for_person("operator") if "operator" in roles else "A node gets one with `freehold node start`.",
        )
    if now >= peer.not_after:
        raise CertificateRefused("The certificate has expired.", hint=ask_for_another(peer.role, peer.name))
    if now < peer.not_before:
        raise CertificateRefused("The certificate is not valid yet.", hint="Set the clocks of both machines.")


def given_out(records: EnrolmentRecords, peer: Identity, shown: bytes) -> bool:
    """Whether this very certificate, in DER, was given out here to this identity."""
    given = records.certificate(peer.serial)
    if given is None or (given.role, given.name) != (peer.role, peer.name):
        return False
    return ssl.PEM_cert_to_DER_cert(spki.certificates(given.chain)[0]) == shown


def ask_for_another(role: str, name: str) -> str:
    """How one gets another token."""
    flags = f"--node {name or 'NAME'}" if role == "node" else f"--role {role} --name {name}"
    return f"The coordinator's operator makes one with `freehold token create {flags}`."


def for_person(role: str) -> str:
    """How a person gets a certificate."""
    return f"`freehold token create --role {role} --name NAME` makes a token, `freehold login` uses it."
