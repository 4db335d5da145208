"""What enrolment remembers, and what it needs of whatever remembers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

EventName = Literal["token", "revoke", "enroll", "login", "seen", "renew", "leave", "certify", "deny", "allow"]


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A join token without its secret."""

    id: str
    secret_digest: str
    federation: str
    role: str = "node"
    node: str | None
    """The only name it enrolls; None: any. A person's is never None."""
    uses: int
    """How many are left."""
    created: float
    expires: float
    creator: str
    revoked: float | None


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """A name, when it was last enrolled, and when it left."""

    name: str
    enrolled: float
    left: float | None


@dataclass(frozen=True, kw_only=True)
class CertificateRecord:
    """A certificate that was given out. Its key is never certified again."""

    serial: str
    role: str
    name: str
    key_digest: str
    token_id: str | None
    chain: str
    not_before: float
    not_after: float


@dataclass(frozen=True, kw_only=True)
class DenialRecord:
    """An entry of the deny list: a serial or an identity."""

    what: str
    time: float
    reason: str
    identity: str | None
    """Whose certificate it is, of a serial that was given out here."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """An entry of the log; `outcome` is 0 or an error's number. There is never a secret in it."""

    time: float
    event: EventName
    name: str | None = None
    serial: str | None = None
    token_id: str | None = None
    address: str | None = None
    by: str | None = None
    outcome: int = 0


class EnrolmentRecords(Protocol):
    """The records, within one transaction."""

    def put_token(self, token: TokenRecord) -> None:
        """Add a token."""

    def take_token(self, token_id: str, uses: int = 1) -> bool:
        """Take that many uses away if there are as many; negative: give them back. Locks the token until the transaction ends."""

    def token(self, token_id: str) -> TokenRecord | None:
        """The token with this number."""

    def tokens(self) -> list[TokenRecord]:
        """All, the oldest first."""

    def revoke_token(self, token_id: str, now: float) -> bool:
        """Mark it revoked; False when there is none."""

    def nodes(self) -> list[NodeRecord]:
        """All, by name."""

    def put_node(self, name: str, now: float, *, replace: bool) -> bool:
        """Enroll a name that is free or has left, or any with `replace`; False when it is taken. Locks the name."""

    def hold_node(self, name: str) -> bool:
        """Whether the name is enrolled. Locks the name until the transaction ends."""

    def hold_identity(self, role: str, name: str) -> bool:
        """Whether there ever was a certificate of this identity. Locks them until the transaction ends."""

    def end_node(self, name: str, now: float) -> None:
        """Mark it as having left."""

    def put_certificate(self, certificate: CertificateRecord) -> bool:
        """Add a certificate; False when its key or serial is there already, and then the transaction must be undone."""

    def certificate_of_key(self, key_digest: str) -> CertificateRecord | None:
        """The certificate that was given for this key."""

    def certificate(self, serial: str) -> CertificateRecord | None:
        """The certificate with this serial, if it was given out here."""

    def serials(self, role: str, name: str, now: float) -> list[str]:
        """The certificates of an identity that have not expired."""

    def deny(self, what: str, now: float, reason: str) -> None:
        """Put a serial or an identity on the deny list, if it is not on it."""

    def allow(self, what: str) -> bool:
        """Take it off; False when it was not on it."""

    def denied(self, *what: str) -> str | None:
        """The reason why one of these is on the deny list; None when none is."""

    def denials(self) -> list[DenialRecord]:
        """The deny list, the oldest entry first."""

    def identities(self) -> set[str]:
        """Everybody who is or was enrolled or certified here, seen with a certificate of another CA, or named by a token."""

    def knows_serial(self, serial: str) -> bool:
        """Whether a certificate with this serial was given out here, or seen. A first zero may be left out."""

    def was_seen(self, name: str, serial: str) -> bool:
        """Whether the log has a first sight of this certificate."""

    def log(self, event: Event) -> None:
        """Add an entry to the log."""
