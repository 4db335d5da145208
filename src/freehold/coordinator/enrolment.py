"""Who becomes a node, stays one and ceases to be one: tokens are redeemed, certificates renewed, identities denied.

Every step is one transaction, its entry in the log included. A step that is refused undoes all it did, and then is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import get_args

from freehold.coordinator import denials
from freehold.coordinator.admission import admit, ask_for_another, check_peer, for_person, given_out, names_of
from freehold.coordinator.attempts import Attempts
from freehold.coordinator.authority import NODE_LIFE_S, Authority
from freehold.coordinator.certificates import DAY_S, Issued, check_name
from freehold.coordinator.enrolment_records import (
    CertificateRecord,
    DenialRecord,
    EnrolmentRecords,
    Event,
    NodeRecord,
    TokenRecord,
)
from freehold.errors import CertificateRefused, CsrRefused, Denied, FreeholdError, TokenRefused, UsageError
from freehold.wire import jointoken
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Certificate, EnrollRequest, LoginRequest, RenewRequest, Role
from freehold.wire.server import Identity

_NOBODY = "0" * 64
_NODE: frozenset[Role] = frozenset({"node"})
_ALL: frozenset[Role] = frozenset(get_args(Role))

PERSON_LIFE_S = 7 * DAY_S
"""Of a person's certificate, which is renewed when they work and not while they sleep."""


@dataclass(kw_only=True)
class Enrolment:
    """Enrolment in one federation. Methods may be called from several threads at once."""

    authority: Authority
    """May be replaced by one with a new issuer or other roots."""
    transaction: Callable[[], AbstractContextManager[EnrolmentRecords]]
    """Commits when its block is left, and undoes everything when that raises."""
    reading: Callable[[], AbstractContextManager[EnrolmentRecords]]
    """The same for a block that writes nothing, and so need not wait for others."""
    clock: Callable[[], float]
    """Unix time in seconds."""
    random: Callable[[int], bytes] = secrets.token_bytes
    lifetime_s: float = NODE_LIFE_S
    person_life_s: float = PERSON_LIFE_S
    attempts: Attempts = field(init=False)
    """To enroll, by address."""
    _noticed: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.clock)

    # Tokens.

    def create_token(
        self, *, creator: str, ttl_s: float = DAY_S, node: str | None = None, uses: int = 1, role: Role = "node"
    ) -> JoinToken:
        """A new token, for any node or for `node` alone, or for a person of that name, who uses it once.

        This is the only time that its secret is known here.
        """
        if node is not None:
            check_name(node)
        if role != "node" and (node is None or uses != 1):
            raise UsageError(f"A token for a {role} is for one name, and one use.", hint=f"Give --role {role} --name NAME.")
        if not 0 < ttl_s <= 30 * DAY_S or uses < 1:
            raise UsageError("A join token is valid for up to 30 days, and for one use or more.", hint="Give --ttl, say, 24h.")
        now = self.clock()
        secret = jointoken.encode(self.random(jointoken.SECRET_BYTES))
        with self.transaction() as records:
            token = JoinToken(pin=self.authority.pin(), id=self._free_id(records), secret=secret)
            records.put_token(
                TokenRecord(
                    id=token.id,
                    secret_digest=_digest(secret),
                    federation=self.authority.federation,
                    role=role,
                    node=node,
                    uses=uses,
                    created=now,
                    expires=now + ttl_s,
                    creator=creator,
                    revoked=None,
                )
            )
            records.log(Event(time=now, event="token", name=_logged(role, node), token_id=token.id, by=creator))
        return token

    def tokens(self) -> list[TokenRecord]:
        """All tokens ever made, in the order they were."""
        with self.reading() as records:
            return records.tokens()

    def revoke_token(self, token_id: str, *, by: str) -> None:
        """Let a token enroll nobody any more; nodes that it enrolled stay. Raises UsageError for an unknown one."""
        now = self.clock()
        with self.transaction() as records:
            if not records.revoke_token(token_id, now):
                raise UsageError(f"There is no join token with number {token_id!r}.", hint="`freehold token list` shows them.")
            records.log(Event(time=now, event="revoke", token_id=token_id, by=by))

    # Nodes.

    def enroll(self, request: EnrollRequest, *, address: str) -> Certificate:
        """Redeem a token for a certificate.

        A request whose answer was lost may be sent again: the same token, node and key get the same certificate.
        Raises TokenRefused, Denied or CsrRefused. After ten failures an address may try twice a minute.
        """
        event = Event(time=self.clock(), event="enroll", name=request.node, token_id=request.token_id, address=address)
        return self._join(request, event, address)

    def login(self, request: LoginRequest, *, address: str) -> Certificate:
        """The same for a person, whose role and name the token says: what they had before is denied. Raises as `enroll`."""
        event = Event(time=self.clock(), event="login", token_id=request.token_id, address=address)
        return self._join(request, event, address)

    def _join(self, request: EnrollRequest | LoginRequest, event: Event, address: str) -> Certificate:
        wait_s = self.attempts.wait_s(address)
        if wait_s:
            raise TokenRefused("Too many attempts from this address have failed.", hint=f"Try again in {math.ceil(wait_s)} s.")
        try:
            with self._step(event) as records:
                return self._redeem(records, request, event)
        except (TokenRefused, CsrRefused, Denied):
            self.attempts.failed(address)
            raise

    def renew(self, request: RenewRequest, *, peer: Identity, shown: bytes, address: str) -> Certificate:
        """A new certificate for who presents a valid one; the request's key must be new. The old one stays valid.

        Raises CertificateRefused, unless that one, `shown` in DER, was given out here: whoever else may vouch for nodes chooses
        serial numbers as well. Raises Denied or CsrRefused.
        """
        role, name = peer.role, _logged(peer.role, peer.name)
        event = Event(time=self.clock(), event="renew", name=name, serial=peer.serial, address=address)
        with self._step(event) as records:
            # First, for it locks: who leaves or is replaced meanwhile must not be renewed.
            enrolled = records.hold_node(peer.name) if role == "node" else records.hold_identity(role, peer.name)
            admit(records, peer, self.authority.federation, event.time, _ALL)
            if not enrolled or not given_out(records, peer, shown):
                raise CertificateRefused(
                    f"{name!r} is not enrolled here.", hint="Join with a token; or renew it at the CA that signed it."
                )
            issued = self._sign(request.csr, role, peer.name, event.time)  # type: ignore[arg-type]  # one of _ALL
            return self._record(records, issued, role, peer.name, event)  # type: ignore[arg-type]

    def notice(self, peer: Identity, *, address: str) -> None:
        """Log a node whose certificate was not given out here, when it is first seen, and take its name."""
        if (peer.name, peer.serial) in self._noticed:
            return
        now = self.clock()
        with self.transaction() as records:
            if records.certificate(peer.serial) is None and not records.was_seen(peer.name, peer.serial):
                records.put_node(peer.name, now, replace=False)
                records.log(Event(time=now, event="seen", name=peer.name, serial=peer.serial, address=address))
        self._noticed.add((peer.name, peer.serial))

    def admit(self, peer: Identity, *, roles: frozenset[Role] = _NODE) -> None:
        """Raise CertificateRefused or Denied unless this identity may speak now; to be asked at each request."""
        with self.reading() as records:
            admit(records, peer, self.authority.federation, self.clock(), roles)

    def admit_person(self, peer: Identity, *, shown: bytes) -> None:
        """As `admit`, and raise CertificateRefused unless the certificate, `shown` in DER, was given out here to that person.

        Who may administer is decided here alone, whoever else may vouch for nodes.
        """
        with self.reading() as records:
            admit(records, peer, self.authority.federation, self.clock(), _ALL - _NODE)
            known = given_out(records, peer, shown)
        if not known:
            raise CertificateRefused(
                f"The certificate of {peer.role}/{peer.name} was not given out by this coordinator.", hint=for_person(peer.role)
            )

    def is_denied(self, peer: Identity) -> bool:
        """Whether its serial or its name is on the deny list."""
        with self.reading() as records:
            return records.denied(*names_of(peer)) is not None

    def leave(self, peer: Identity) -> None:
        """A node leaves for good: its certificates are denied, and its name is free. Once more does nothing."""
        event = Event(time=self.clock(), event="leave", name=peer.name, serial=peer.serial)
        with self._step(event) as records:
            check_peer(peer, self.authority.federation, event.time, _NODE)
            records.end_node(peer.name, event.time)
            _deny_certificates(records, "node", peer.name, event.time, "left")
            given = records.certificate(peer.serial)
            if given is None:
                records.deny(peer.serial, event.time, "left")
            if given is None or (given.role, given.name) != ("node", peer.name):
                # Its CA may go on to renew it: the name stays out until an operator allows it. A serial that is somebody's
                # here does not: another CA may have chosen it.
                records.deny(f"node/{peer.name}", event.time, "left")
            records.log(event)

    def nodes(self) -> list[NodeRecord]:
        """Every node there was, by name."""
        with self.reading() as records:
            return records.nodes()

    # Other identities, and the deny list.

    def certify(self, request: str, *, role: Role, name: str, by: str, lifetime_s: float = NODE_LIFE_S) -> Issued:
        """A certificate for an operator or a researcher, asked for on the coordinator's own machine."""
        if role == "node":
            raise UsageError("A node gets its certificate with a join token.", hint="`freehold token create` makes one.")
        event = Event(time=self.clock(), event="certify", name=f"{role}/{name}", by=by)
        with self._step(event) as records:
            issued = self._sign(request, role, name, event.time, lifetime_s)
            self._record(records, issued, role, name, event)
            return issued

    def deny(self, what: str, *, by: str, reason: str = "", even_unknown: bool = False) -> None:
        """Refuse a serial, or an identity like `node/alice`, from now on. The server cuts open connections. Raises UsageError,
        and UnknownName unless `even_unknown`.
        """
        denials.check(what)
        now = self.clock()
        with self.transaction() as records:
            if not even_unknown:
                denials.check_known(records, what)
            records.deny(what, now, reason)
            records.log(Event(time=now, event="deny", name=what, by=by))

    def allow(self, what: str, *, by: str) -> None:
        """Take a serial or an identity off the deny list; raises UsageError when it is not on it."""
        now = self.clock()
        with self.transaction() as records:
            if not records.allow(what):
                raise UsageError(f"{what!r} is not on the deny list.", hint="Identities are written like node/alice.")
            records.log(Event(time=now, event="allow", name=what, by=by))

    def denials(self) -> list[DenialRecord]:
        """The deny list, the oldest entry first."""
        with self.reading() as records:
            return records.denials()

    # Inside.

    @contextmanager
    def _step(self, event: Event) -> Iterator[EnrolmentRecords]:
        try:
            with self.transaction() as records:
                yield records
        except FreeholdError as error:
            with self.transaction() as records:
                records.log(replace(event, outcome=error.code))
            raise

    def _redeem(self, records: EnrolmentRecords, request: EnrollRequest | LoginRequest, event: Event) -> Certificate:
        # The use is taken before anything is read: of two requests at once, the second one waits here, on any database.
        taken = records.take_token(request.token_id)
        token = records.token(request.token_id)
        right = hmac.compare_digest(_digest(request.secret), token.secret_digest if token else _NOBODY)
        if token is None or not right:
            raise TokenRefused("The join token is not accepted.", hint="Ask the coordinator's operator for a new one.")
        role, name = _check_token(token, request, event.time)
        event = replace(event, name=_logged(role, name))
        if records.denied(f"{role}/{name}") is not None:
            raise Denied(f"{role}/{name} is on the deny list.", hint="The coordinator's operator can take it off.")
        issued = self._sign(request.csr, role, name, event.time)
        before = records.certificate_of_key(issued.key_digest)
        mine = before and (before.token_id, before.role, before.name) == (token.id, role, name)
        if before and mine and records.denied(before.serial) is None:
            if taken:
                records.take_token(token.id, uses=-1)
            records.log(replace(event, serial=before.serial))
            return self._answer(before.role, before.name, before.chain, before.not_after)
        if not taken:
            raise TokenRefused("The join token has been used.", hint=ask_for_another(role, name))
        if role != "node":
            records.hold_identity(role, name)
        elif not records.put_node(name, event.time, replace=token.node is not None):
            raise TokenRefused(
                f"A node named {name!r} is enrolled already, and the join token is not bound to that name.",
                hint=f"Choose another name; if it is the same node: {ask_for_another(role, name)}",
            )
        # Two machines must not have one identity: what the name held before is over.
        _deny_certificates(records, role, name, event.time, "replaced")
        return self._record(records, issued, role, name, event)

    def _sign(self, request: str, role: Role, name: str, now: float, lifetime_s: float | None = None) -> Issued:
        life_s = lifetime_s or (self.lifetime_s if role == "node" else self.person_life_s)
        return self.authority.sign(request, role=role, name=name, now=now, lifetime_s=life_s)

    def _record(self, records: EnrolmentRecords, issued: Issued, role: Role, name: str, event: Event) -> Certificate:
        certificate = CertificateRecord(
            serial=issued.serial,
            role=role,
            name=name,
            key_digest=issued.key_digest,
            token_id=event.token_id,
            chain=issued.chain,
            not_before=issued.not_before,
            not_after=issued.not_after,
        )
        if records.certificate_of_key(issued.key_digest) or not records.put_certificate(certificate):
            raise _key_used()
        records.log(replace(event, serial=issued.serial))
        return self._answer(role, name, issued.chain, issued.not_after)

    def _answer(self, role: str, name: str, chain: str, not_after: float) -> Certificate:
        authority = self.authority
        return Certificate(
            federation=authority.federation,
            node=name,
            role=role,  # type: ignore[arg-type]  # as it was stored
            chain=chain,
            roots=authority.roots_pem,
            not_after=not_after,
        )

    def _free_id(self, records: EnrolmentRecords) -> str:
        while records.token(found := self.random(4).hex()) is not None:
            pass
        return found


def _check_token(token: TokenRecord, request: EnrollRequest | LoginRequest, now: float) -> tuple[Role, str]:
    """The identity that a token is now good for. Only who knows the secret learns why a token is refused."""
    role: Role = token.role  # type: ignore[assignment]  # as it was stored
    name = request.node if isinstance(request, EnrollRequest) else token.node or ""
    if token.revoked is not None:
        raise TokenRefused("The join token has been revoked.", hint=ask_for_another(role, name))
    if now >= token.expires:
        raise TokenRefused("The join token has expired.", hint=ask_for_another(role, name))
    if request.federation not in (None, token.federation):
        raise TokenRefused(
            f"The join token is not for federation {request.federation!r}.", hint="Check the coordinator's address."
        )
    if (role == "node") != isinstance(request, EnrollRequest):
        how = "`freehold node start` uses it." if role == "node" else "`freehold login` uses it."
        raise TokenRefused(f"The join token is for a {role}.", hint=f"{how} {ask_for_another('node', name)}")
    if token.node not in (None, name):
        raise TokenRefused(f"The join token is not for node {name!r}.", hint=ask_for_another(role, name))
    return role, name


def _deny_certificates(records: EnrolmentRecords, role: Role, name: str, now: float, reason: str) -> None:
    for serial in records.serials(role, name, now):
        records.deny(serial, now, reason)


def _key_used() -> CsrRefused:
    return CsrRefused("The certificate request's key has been used before.", hint="Each certificate needs a new key.")


def _logged(role: str, name: str | None) -> str | None:
    """An identity as the log has it: of a node only the name."""
    return name if role == "node" else f"{role}/{name}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
