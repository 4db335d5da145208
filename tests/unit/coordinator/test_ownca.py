"""Certificates of an organisation's own CA: what fits, and what is refused with which remedy."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from freehold.coordinator.authority import Authority
from freehold.coordinator.ownca import OwnCertificates, check_server, open_authority
from freehold.errors import CertificateUnfit
from freehold.wire import spki
from tests.unit.enrolment.world import csr, handshake, identity_of, pem_of

NOW = time.time()
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def make(
    name: str,
    above: Made | None = None,
    *,
    ca: bool | None = False,
    length: int | None = None,
    signs: bool | None = None,
    usages: Sequence[x509.ObjectIdentifier] = (),
    names: Sequence[str] = (),
    begin: float = -DAY,
    end: float = DAY,
) -> Made:
    """`ca` None: without basic constraints; `signs` None: without key usage."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.certificate.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(NOW + begin), UTC))
        .not_valid_after(datetime.fromtimestamp(int(NOW + end), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if above:
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key())
        builder = builder.add_extension(known, critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
    if signs is not None:
        flags = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            False,
        )
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=signs, crl_sign=signs, **flags)
        builder = builder.add_extension(usage, critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
    return Made(certificate=builder.sign(above.key if above else key, hashes.SHA256()), key=key)


def _name(text: str) -> x509.GeneralName:
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


ROOT = make("root", ca=True, signs=True)
OTHER = make("other root", ca=True, signs=True)
NAMES = ("fl.example.org", "*.lab.example.org", "192.0.2.7")


def files(folder: Path, kind: str, made: Made, *above: Made, key: str | None = None, mode: int = 0o600) -> dict[str, Path]:
    """The certificate with those above it, and the key, as they are given to the coordinator."""
    cert, private = folder / f"{kind}.pem", folder / f"{kind}.key"
    cert.write_text(made.pem + "".join(each.pem for each in above))
    private.touch(mode)
    private.write_text(key or pem_of(made.key))
    private.chmod(mode)
    return {f"{kind}_cert": cert, f"{kind}_key": private}


def server(names: Sequence[str] = NAMES, above: Made = ROOT, **changed: object) -> Made:
    given = {"usages": [Usage.SERVER_AUTH], "names": names, "signs": False} | changed
    return make("coordinator", above, **given)  # type: ignore[arg-type]


def issuer(above: Made = ROOT, **changed: object) -> Made:
    given = {"ca": True, "length": 0, "signs": True} | changed
    return make("issuer", above, **given)  # type: ignore[arg-type]


def opened(folder: Path, own: OwnCertificates) -> Authority:
    return open_authority(own, folder / "authority", federation="hearts", now=NOW, ca_dir=folder / "ca")


@pytest.mark.parametrize("name", ["fl.example.org", "FL.example.org", "a.lab.example.org", "192.0.2.7"])
def test_a_server_certificate_is_used_under_its_names(tmp_path: Path, name: str) -> None:
    own = OwnCertificates(**files(tmp_path, "server", server(), ROOT))
    assert check_server(own, names=[name], now=NOW).names == NAMES


@pytest.mark.parametrize("name", ["example.org", "b.a.lab.example.org", "lab.example.org", "192.0.2.8", "fl.example.org.evil"])
def test_and_under_no_other(tmp_path: Path, name: str) -> None:
    own = OwnCertificates(**files(tmp_path, "server", server(), ROOT))
    with pytest.raises(CertificateUnfit, match="not for") as caught:
        check_server(own, names=["fl.example.org", name], now=NOW)
    assert "--name" in caught.value.hint


def test_the_pin_is_that_of_the_servers_root_and_nodes_are_signed_by_freehold(tmp_path: Path) -> None:
    authority = opened(tmp_path, OwnCertificates(**files(tmp_path, "server", server(), ROOT)))
    assert authority.pin() == spki.digest(ROOT.pem)
    assert authority.roots_pem == ROOT.pem
    assert ROOT.pem not in authority.anchors_pem, "the CA of the server does not vouch for nodes"
    issued = authority.sign(csr(), role="node", name="alice", now=NOW)
    assert identity_of(issued.chain).federation == "hearts"


def test_the_root_may_be_in_a_file_of_its_own_and_the_chain_may_be_long(tmp_path: Path) -> None:
    middle = make("middle", ROOT, ca=True, signs=True)
    lower = make("lower", middle, ca=True, signs=True)
    (tmp_path / "roots.pem").write_text(OTHER.pem + ROOT.pem)
    given = files(tmp_path, "server", server(above=lower), middle, lower)  # in whichever order
    authority = opened(tmp_path, OwnCertificates(**given, root_ca=tmp_path / "roots.pem"))
    assert authority.pin() == spki.digest(ROOT.pem)
    assert authority.roots_pem == ROOT.pem + OTHER.pem, "the pinned one first; the other may replace it one day"


def test_a_root_that_nodes_shall_learn_of_does_not_vouch_for_nodes(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text(ROOT.pem)
    authority = opened(tmp_path, OwnCertificates(root_ca=tmp_path / "roots.pem"))
    assert authority.roots_pem.endswith(ROOT.pem) and authority.pin() != spki.digest(ROOT.pem)
    assert ROOT.pem not in authority.anchors_pem


def test_an_issuer_signs_for_nodes_and_only_what_is_below_it_counts(tmp_path: Path) -> None:
    own, old = issuer(), issuer()
    given = OwnCertificates(**files(tmp_path, "issuer", own, ROOT, old))
    authority = opened(tmp_path, given)
    assert not (tmp_path / "ca").exists(), "no root of its own is made"
    assert authority.anchors_pem == own.pem + old.pem
    assert authority.pin() == spki.digest(ROOT.pem)
    authority.issue_server(tmp_path / "own.pem", hosts=["localhost"], now=NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "node.pem").write_text(pem_of(key) + authority.sign(csr(key), role="node", name="alice", now=NOW).chain)
    roots = tmp_path / "own.pem"
    peer = handshake(roots, ROOT.pem, ROOT.pem, tmp_path / "node.pem")
    assert peer is not None and (peer.name, peer.role) == ("alice", "node")


def test_client_cas_are_added_to_what_vouches_for_nodes(tmp_path: Path) -> None:
    (tmp_path / "clients.pem").write_text(OTHER.pem)
    authority = opened(tmp_path, OwnCertificates(client_ca=tmp_path / "clients.pem"))
    assert authority.anchors_pem.endswith(OTHER.pem)
    assert authority.anchors_pem.count("BEGIN") == 2
    assert OTHER.pem not in authority.roots_pem, "it does not vouch for the coordinator"


NARROW = make("narrow root", ca=True, signs=True, length=0)
OLD = make("old root", ca=True, signs=True, end=-60.0)

BAD_SERVERS: dict[str, tuple[Callable[[Path], dict[str, Path]], str]] = {
    "another key": (lambda f: files(f, "server", server(), ROOT, key=pem_of(ROOT.key)), "does not belong"),
    "a key for all": (lambda f: files(f, "server", server(), ROOT, mode=0o644), "open to others"),
    "a key for the group": (lambda f: files(f, "server", server(), ROOT, mode=0o640), "open to others"),
    "no key": (lambda f: files(f, "server", server(), ROOT, key="nonsense"), "no private key"),
    "a passphrase": (lambda f: files(f, "server", server(), ROOT, key=locked(ROOT)), "no private key"),
    "for clients": (lambda f: files(f, "server", server(usages=[Usage.CLIENT_AUTH]), ROOT), "serverAuth"),
    "for anything": (lambda f: files(f, "server", server(usages=[]), ROOT), "serverAuth"),
    "nameless": (lambda f: files(f, "server", server(names=["spiffe://hearts/node/x"]), ROOT), "neither a DNS name"),
    "expired": (lambda f: files(f, "server", server(end=-60.0), ROOT), "has expired"),
    "not yet": (lambda f: files(f, "server", server(begin=3600.0), ROOT), "not valid yet"),
    "an expired root": (lambda f: files(f, "server", server(above=OLD), OLD), "has expired"),
    "no root": (lambda f: files(f, "server", server()), "does not lead to a root"),
    "another root": (lambda f: files(f, "server", server(), OTHER), "does not lead to a root"),
    "signed by a leaf": (lambda f: files(f, "server", server(above=(leaf := server())), leaf, ROOT), "is no CA"),
    "no certificate": (lambda f: empty(files(f, "server", server(), ROOT)), "no certificate"),
    "no file": (lambda f: gone(files(f, "server", server(), ROOT)), "cannot be read"),
}

BAD_ISSUERS: dict[str, tuple[Callable[[Path], dict[str, Path]], str]] = {
    "another key": (lambda f: files(f, "issuer", issuer(), ROOT, key=pem_of(ROOT.key)), "does not belong"),
    "a key for all": (lambda f: files(f, "issuer", issuer(), ROOT, mode=0o604), "open to others"),
    "no CA": (lambda f: files(f, "issuer", issuer(ca=False, length=None), ROOT), "is no CA"),
    "no constraints": (lambda f: files(f, "issuer", issuer(ca=None), ROOT), "is no CA"),
    "no keyCertSign": (lambda f: files(f, "issuer", issuer(signs=False), ROOT), "keyCertSign"),
    "no key usage": (lambda f: files(f, "issuer", issuer(signs=None), ROOT), "keyCertSign"),
    "expired": (lambda f: files(f, "issuer", issuer(end=-60.0), ROOT), "has expired"),
    "path length 0 above": (lambda f: files(f, "issuer", issuer(NARROW), NARROW), "path length 0"),
    "for servers only": (lambda f: files(f, "issuer", issuer(usages=[Usage.SERVER_AUTH]), ROOT), "too narrow"),
    "another root": (lambda f: files(f, "issuer", issuer(), OTHER), "does not lead to a root"),
}


def locked(made: Made) -> str:
    return made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()


def empty(given: dict[str, Path]) -> dict[str, Path]:
    next(iter(given.values())).write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    return given


def gone(given: dict[str, Path]) -> dict[str, Path]:
    next(iter(given.values())).unlink()
    return given


@pytest.mark.parametrize("case", [*(("server", c) for c in BAD_SERVERS), *(("issuer", c) for c in BAD_ISSUERS)], ids="-".join)
def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path: Path, case: tuple[str, str]) -> None:
    kind, name = case
    made, match = (BAD_SERVERS if kind == "server" else BAD_ISSUERS)[name]
    with pytest.raises(CertificateUnfit, match=match) as caught:
        opened(tmp_path, OwnCertificates(**made(tmp_path)))
    assert caught.value.code == 130 and caught.value.hint
    if "open" in match:
        assert caught.value.hint == f"chmod 600 {tmp_path / kind}.key"
    assert "PRIVATE" not in str(caught.value)


def test_a_client_ca_that_is_none_is_refused(tmp_path: Path) -> None:
    for made, match in ((server(), "is no CA"), (OLD, "has expired"), (issuer(signs=False), "keyCertSign")):
        (tmp_path / "clients.pem").write_text(made.pem)
        with pytest.raises(CertificateUnfit, match=match):
            opened(tmp_path, OwnCertificates(client_ca=tmp_path / "clients.pem"))


def test_a_certificate_needs_its_key_and_a_key_its_certificate(tmp_path: Path) -> None:
    for field in ("server_cert", "server_key", "issuer_cert", "issuer_key"):
        with pytest.raises(CertificateUnfit, match="but no"):
            OwnCertificates(**{field: tmp_path})


def test_an_issuer_with_path_length_0_will_do_for_it_signs_no_ca(tmp_path: Path) -> None:
    wide = make("wide root", ca=True, signs=True, length=1)
    assert opened(tmp_path, OwnCertificates(**files(tmp_path, "issuer", issuer(wide), wide))).issuer is not None
