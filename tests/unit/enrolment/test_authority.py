from __future__ import annotations

import ssl
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from freehold.coordinator import authority as ca
from freehold.coordinator.authority import Authority, create_root, distrust, renew_issuer, trust
from freehold.coordinator.certificates import DAY_S, Issued
from freehold.errors import CertificateRefused, CoordinatorError, CsrRefused
from freehold.wire import spki
from freehold.wire.server import Identity
from tests.unit.enrolment.world import FEDERATION, World, csr, handshake, identity_of, pem_of

MINUTES = 60.0


def issue(authority: Authority, now: float, folder: Path, key: object = None, **options: object) -> Path:
    """A node's key and chain in a file."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issued = authority.sign(csr(key), **({"role": "node", "name": "alice", "now": now} | options))  # type: ignore[arg-type]
    path = folder / f"{issued.serial}.pem"
    path.write_text(pem_of(key) + issued.chain)
    return path


def meet(world: World, pair: Path | None, roots: str | None = None, host: str = "localhost") -> Identity | None:
    return handshake(world.server, world.authority.roots_pem, roots or world.authority.roots_pem, pair, host)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA-2048"],
)
def test_tls_takes_each_kind_of_key_and_shows_who_it_is(world: World, tmp_path: Path, key: object) -> None:
    peer = meet(world, issue(world.authority, world.clock(), tmp_path, key))
    assert peer is not None
    assert (peer.federation, peer.role, peer.name) == (FEDERATION, "node", "alice")
    world.enrolment.admit(peer)


def test_without_a_certificate_a_connection_is_made_and_shows_nobody(world: World) -> None:
    assert meet(world, None) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_server_is_known_by_name_and_by_address(world: World, host: str) -> None:
    meet(world, None, host=host)


def test_what_is_no_host_name_gets_no_certificate(world: World) -> None:
    with pytest.raises(CoordinatorError, match="no host name"):
        world.authority.issue_server(world.server, hosts=["hôte"], now=world.clock())


def test_the_server_is_not_known_by_another_name(world: World) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(world, None, host="elsewhere.example")


def test_neither_side_takes_a_certificate_of_a_foreign_authority(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    try:
        with pytest.raises(ssl.SSLError):
            meet(world, issue(other.authority, world.clock(), tmp_path))
        with pytest.raises(ssl.SSLCertVerificationError):
            meet(world, None, roots=other.authority.roots_pem)
    finally:
        other.engine.dispose()


def test_a_nodes_certificate_is_no_servers_and_signs_nothing(world: World, tmp_path: Path) -> None:
    pair = issue(world.authority, world.clock(), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pair, world.authority.roots_pem, world.authority.roots_pem, None)
    with pytest.raises(CoordinatorError, match="may not sign"):
        roots = tmp_path / "roots.pem"
        roots.write_text(world.authority.roots_pem)
        Authority.from_files(federation=FEDERATION, roots=roots, issuer=pair)


def test_a_servers_certificate_is_no_nodes(world: World) -> None:
    with pytest.raises(ssl.SSLError):
        meet(world, world.server)


@pytest.mark.parametrize("skew", [-10 * MINUTES, 10 * MINUTES])
def test_clocks_may_be_ten_minutes_apart(tmp_path: Path, skew: float) -> None:
    world = World(tmp_path)
    now = world.clock() + skew  # the coordinator's clock; TLS goes by the real one
    authority = Authority.open(tmp_path / "skewed", federation=FEDERATION, now=now, ca_dir=tmp_path / "skewed-ca")
    authority.issue_server(world.server, hosts=["localhost"], now=now)
    pair = issue(authority, now, tmp_path)
    peer = handshake(world.server, authority.roots_pem, authority.roots_pem, pair)
    assert peer is not None
    world.clock.now = now
    world.enrolment.admit(peer)
    world.engine.dispose()


def test_an_expired_certificate_is_refused_by_tls_and_by_the_check(world: World, tmp_path: Path) -> None:
    long_ago = world.clock() - 2 * DAY_S
    authority = Authority.open(tmp_path / "old", federation=FEDERATION, now=long_ago, ca_dir=tmp_path / "old-ca")
    pair = issue(authority, long_ago, tmp_path)
    with pytest.raises(ssl.SSLError):
        handshake(world.server, authority.roots_pem, world.authority.roots_pem, pair)
    peer = identity_of(pair.read_text())
    with pytest.raises(CertificateRefused, match="expired"):
        world.enrolment.admit(peer)
    world.clock.now = long_ago
    world.enrolment.admit(peer)
    with pytest.raises(CertificateRefused, match="federation"):
        world.enrolment.admit(msgspec.structs.replace(peer, federation="others"))
    with pytest.raises(CertificateRefused, match="operator"):
        world.enrolment.admit(peer, roles=frozenset({"operator"}))
    world.clock.now -= DAY_S
    with pytest.raises(CertificateRefused, match="not valid yet"):
        world.enrolment.admit(peer)


def parsed(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.chain.encode())[0]


def test_what_a_request_claims_is_not_looked_at(world: World) -> None:
    claims = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{FEDERATION}/operator/eve")])
    made = parsed(world.authority.sign(csr(name="EVE", extension=claims), role="node", name="alice", now=world.clock()))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(f"spiffe://{FEDERATION}/node/alice")]
    assert made.subject.rfc4514_string() == "CN=alice"
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.serial_number.bit_length() > 120


def damaged(request: str) -> str:
    """The same request with another public key under the old signature."""
    other = x509.load_pem_x509_csr(csr().encode()).tbs_certrequest_bytes
    good = x509.load_pem_x509_csr(request.encode())
    mine = good.tbs_certrequest_bytes
    assert len(other) == len(mine)
    import base64

    from cryptography.hazmat.primitives.serialization import Encoding

    der = good.public_bytes(Encoding.DER).replace(mine, other)
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE REQUEST-----\n"


BAD_REQUESTS = {
    "no PEM": ("nonsense", "cannot be read"),
    "another key": (damaged(csr()), "not signed"),
    "RSA of 1024 bits": (csr(rsa.generate_private_key(65537, 1024)), "RSA of 2048"),
    "P-521": (csr(ec.generate_private_key(ec.SECP521R1())), "EC P-256"),
    "DSA": (csr(dsa.generate_private_key(2048)), "EC P-256"),
}


@pytest.mark.parametrize(("request_pem", "reason"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_refused(world: World, request_pem: str, reason: str) -> None:
    with pytest.raises(CsrRefused, match=reason):
        world.authority.sign(request_pem, role="node", name="alice", now=world.clock())


@pytest.mark.parametrize("name", ["", "alice/../operator", "Alice", "alice\n", "a" * 64])
def test_what_is_no_name_gets_no_certificate(world: World, name: str) -> None:
    with pytest.raises(CoordinatorError, match="not a name"):
        world.authority.sign(csr(), role="node", name=name, now=world.clock())


def test_keys_can_be_read_by_their_owner_alone(world: World) -> None:
    files = [path for path in world.folder.rglob("*") if path.is_file() and "PRIVATE KEY" in path.read_text(errors="replace")]
    assert sorted(path.name for path in files) == ["issuer.pem", "root.key", "server.pem"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in files} == {0o700}


def test_the_root_may_be_taken_away_until_the_issuer_must_be_renewed(world: World, tmp_path: Path) -> None:
    def reopened(now: float) -> Authority:
        return Authority.open(world.folder / "authority", federation=FEDERATION, now=now, ca_dir=world.folder / "ca")

    key, away = world.folder / "ca" / "root.key", tmp_path / "root.key"
    key.rename(away)
    pair = issue(reopened(world.clock()), world.clock(), tmp_path)
    late = world.authority.renew_issuer_at + 1
    assert reopened(late).chain == world.authority.chain  # goes on with what it has
    with pytest.raises(CoordinatorError, match="expired"):
        reopened(late).sign(csr(), role="node", name="alice", now=world.clock() + ca.ISSUER_LIFE_S + 1)
    away.rename(key)
    renewed = reopened(late)
    assert renewed.chain != world.authority.chain and renewed.pin() == world.authority.pin()
    assert meet(world, pair) is not None  # what the old issuer signed stays valid


def test_no_certificate_outlives_its_issuer(world: World) -> None:
    end = world.clock() + ca.ISSUER_LIFE_S
    assert world.authority.sign(csr(), role="node", name="alice", now=end - 60).not_after <= end


def test_the_servers_certificate_is_due_at_two_thirds_of_its_life(world: World) -> None:
    due = world.authority.issue_server(world.server, hosts=["::1"], now=world.clock())
    assert 19.9 * DAY_S < due - world.clock() < 20.1 * DAY_S


def test_a_root_is_replaced_while_nodes_go_on(world: World, tmp_path: Path) -> None:
    folder, new_ca, now = world.folder / "authority", tmp_path / "new-ca", world.clock()
    old_pin, old_pair = world.authority.pin(), issue(world.authority, now, tmp_path)
    files = {"federation": FEDERATION, "roots": folder / "roots.pem", "issuer": folder / "issuer.pem"}

    create_root(new_ca, federation=FEDERATION, now=now)
    trust(folder, (new_ca / "root.pem").read_text())
    both = Authority.from_files(**files)  # type: ignore[arg-type]
    assert both.pin() == old_pin and len(both.roots) == 2

    renew_issuer(folder, ca_dir=new_ca, federation=FEDERATION, now=now)
    switched = Authority.from_files(**files)  # type: ignore[arg-type]
    switched.issue_server(world.server, hosts=["localhost"], now=now)
    assert switched.pin() != old_pin
    assert [spki.digest(root) for root in spki.certificates(switched.roots_pem)] == [switched.pin(), old_pin]
    new_pair = issue(switched, now, tmp_path)
    for pair in (old_pair, new_pair):
        assert handshake(world.server, switched.roots_pem, both.roots_pem, pair) is not None

    distrust(folder, old_pin)
    left = Authority.from_files(**files)  # type: ignore[arg-type]
    with pytest.raises(ssl.SSLError):
        handshake(world.server, left.roots_pem, left.roots_pem, old_pair)
    with pytest.raises(CoordinatorError, match="only root"):
        distrust(folder, left.pin())


def test_an_authority_of_ones_own_may_lie_below_a_foreign_root(world: World, tmp_path: Path) -> None:
    brought = Authority.from_files(
        federation="others", roots=world.folder / "authority" / "roots.pem", issuer=world.folder / "authority" / "issuer.pem"
    )
    peer = handshake(world.server, brought.roots_pem, brought.roots_pem, issue(brought, world.clock(), tmp_path))
    assert peer is not None and peer.federation == "others"


def test_certificates_alone_are_trusted_but_sign_nothing(world: World) -> None:
    brought = Authority.from_files(federation=FEDERATION, roots=world.folder / "authority" / "roots.pem")
    assert brought.pin() == world.authority.pin()
    with pytest.raises(CoordinatorError, match="no key to sign"):
        brought.sign(csr(), role="node", name="alice", now=world.clock())


def test_an_issuer_that_leads_to_no_trusted_root_is_refused(world: World, tmp_path: Path) -> None:
    create_root(tmp_path, federation=FEDERATION, now=world.clock())
    with pytest.raises(CoordinatorError, match="does not lead"):
        Authority.from_files(federation=FEDERATION, roots=tmp_path / "root.pem", issuer=world.folder / "authority" / "issuer.pem")


def test_a_damaged_authority_is_reported_without_its_key(world: World) -> None:
    issuer = world.folder / "authority" / "issuer.pem"
    issuer.write_text(issuer.read_text().replace("BEGIN PRIVATE KEY", "BEGIN PRIVATE", 1))
    with pytest.raises(CoordinatorError) as caught:
        Authority.open(world.folder / "authority", federation=FEDERATION, now=world.clock(), ca_dir=world.folder / "ca")
    assert "cannot be read" in str(caught.value) and caught.value.__cause__ is None
