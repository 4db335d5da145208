"""A coordinator and a network for enrolment: real certificates, real TLS in memory, a real database, a clock that is set."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from freehold.coordinator import enrolment_tables
from freehold.coordinator.authority import Authority
from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.schema import metadata
from freehold.coordinator.store import connect
from freehold.errors import Unreachable
from freehold.wire import spki
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Certificate, EnrollRequest, Message, RenewRequest
from freehold.wire.routes import ENROLL, RENEW, Route
from freehold.wire.server import Identity, _identity

FEDERATION = "hearts"
HOST = "localhost"
ADDRESS = "192.0.2.7"


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = time.time()  # TLS has no clock to set, so tests begin now

    def __call__(self) -> float:
        return self.now


class World:
    """A coordinator in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.authority = Authority.open(folder / "authority", federation=FEDERATION, now=self.clock(), ca_dir=folder / "ca")
        self.server = folder / "authority" / "server.pem"
        self.authority.issue_server(self.server, hosts=[HOST, "127.0.0.1"], now=self.clock())
        self.engine = connect(f"sqlite:///{folder / 'store.sqlite'}")
        metadata.create_all(self.engine)
        self.enrolment = Enrolment(
            authority=self.authority,
            transaction=enrolment_tables.transactions(self.engine),
            reading=enrolment_tables.readings(self.engine),
            clock=self.clock,
        )

    def enroll(self, token: JoinToken, csr: str, node: str = "alice", **other: str) -> Certificate:
        values = {"federation": FEDERATION, "token_id": token.id, "secret": token.secret} | other
        return self.enrolment.enroll(EnrollRequest(node=node, csr=csr, **values), address=ADDRESS)

    def joined(self, node: str = "alice") -> Identity:
        token = self.enrolment.create_token(creator="root", node=node)
        return peer_of(self.enroll(token, csr(), node))

    def renew(self, peer: Identity, request: str, shown: bytes | None = None) -> Certificate:
        """`shown`: in DER; what was given out with the peer's serial, if not given."""
        if shown is None:
            with self.enrolment.reading() as records:
                given = records.certificate(peer.serial)
            shown = b"" if given is None else ssl.PEM_cert_to_DER_cert(spki.certificates(given.chain)[0])
        return self.enrolment.renew(RenewRequest(csr=request), peer=peer, shown=shown, address=ADDRESS)

    def log(self) -> list[tuple[str, str | None, int]]:
        with self.engine.connect() as connection:
            table = enrolment_tables.enrolment_log
            rows = connection.execute(sa.select(table.c.event, table.c.name, table.c.outcome).order_by(table.c.id))
            return [(event, name, outcome) for event, name, outcome in rows]


class Loopback:
    """A node's client whose network is memory: real TLS, then the coordinator's own functions."""

    def __init__(self, world: World) -> None:
        self.world, self.calls, self.lose_answer, self.roots = world, [], False, world.authority.roots_pem

    def fetch_roots(self, url: str, pin: str) -> str:
        self.calls.append("roots")
        return self.roots

    def ask(self, url: str, route: Route, message: Message, *, roots: str, pair: Path | None) -> Certificate:
        peer = handshake(self.world.server, self.world.authority.roots_pem, roots, pair)
        self.calls.append(route.path)
        enrolment = self.world.enrolment
        if isinstance(message, EnrollRequest):
            assert route is ENROLL
            answer = enrolment.enroll(message, address=ADDRESS)
        else:
            assert route is RENEW and isinstance(message, RenewRequest) and peer is not None and pair is not None
            shown = ssl.PEM_cert_to_DER_cert(spki.certificates(pair.read_text())[0])
            answer = enrolment.renew(message, peer=peer, shown=shown, address=ADDRESS)
        if self.lose_answer:
            raise Unreachable("The connection broke.")
        return answer


def handshake(server: Path, server_roots: str, client_roots: str, pair: Path | None, host: str = HOST) -> Identity | None:
    """A TLS 1.3 handshake, strictly verified on both sides; the client's certificate as the server sees it."""
    ends = []
    for side, roots, own in ((ssl.PROTOCOL_TLS_SERVER, server_roots, server), (ssl.PROTOCOL_TLS_CLIENT, client_roots, pair)):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
        if side is ssl.PROTOCOL_TLS_SERVER:
            context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=roots)
        if own:
            context.load_cert_chain(own)
        ends.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = ends[0].wrap_bio(up, down, server_side=True)
    asking = ends[1].wrap_bio(down, up, server_hostname=host)
    left = [asking, serving]
    for _ in range(6):
        for end in tuple(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not left
    shown = serving.getpeercert()
    return _identity(shown) if shown else None


def csr(key: object = None, name: str = "whoever", extension: x509.ExtensionType | None = None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    if extension:
        builder = builder.add_extension(extension, critical=False)
    kind = hashes.SHA256() if hasattr(key, "curve") or hasattr(key, "key_size") else None
    return builder.sign(key, kind).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def pem_of(key: object) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()  # type: ignore[attr-defined]


def peer_of(answer: Certificate) -> Identity:
    return identity_of(answer.chain)


def identity_of(chain: str) -> Identity:
    """Who the first certificate of a chain names, without a handshake."""
    certificate = x509.load_pem_x509_certificates(chain.encode())[0]
    (uri,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    federation, role, name = uri.value.removeprefix("spiffe://").split("/")
    not_before, not_after = spki.dates(spki.certificates(chain)[0])
    serial = f"{certificate.serial_number:X}"
    serial = serial.zfill(len(serial) + len(serial) % 2)
    return Identity(federation=federation, role=role, name=name, serial=serial, not_before=not_before, not_after=not_after)
