"""The federation's certificate authority: a root that can lie in a safe, and an issuer below it that signs from day to day.

    <ca_dir>/root.key, root.pem     the root: 10 years. Needed at the first start and once a year; may be taken off the machine
    <folder>/issuer.pem             the issuer's key and certificate: 1 year, signed by the root
    <folder>/roots.pem              what nodes and the coordinator trust; two roots while one replaces the other
    <folder>/server.pem             the coordinator's own key and chain: 30 days

A root is replaced in three steps: `trust` the new one beside the old one and wait until every node has renewed; make its issuer
with `renew_issuer`; after twice a certificate's life, `distrust` the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from freehold import durable
from freehold.coordinator import certificates, csr
from freehold.coordinator.certificates import DAY_S, Issued, Issuer
from freehold.errors import CoordinatorError
from freehold.wire import spki
from freehold.wire.messages import Role

ROOT_LIFE_S = 3650 * DAY_S
ISSUER_LIFE_S = 365 * DAY_S
SERVER_LIFE_S = 30 * DAY_S
NODE_LIFE_S = DAY_S


@dataclass(frozen=True, kw_only=True)
class Authority:
    """What the coordinator trusts, and, where it holds an issuer's key, what it signs with."""

    federation: str
    roots: tuple[x509.Certificate, ...]
    chain: tuple[x509.Certificate, ...]
    """The issuer's certificate and those above it, up to a root but without it; empty without a key."""
    issuer: Issuer | None
    server_roots: tuple[x509.Certificate, ...] = ()
    """Whom nodes trust as coordinator where another CA signed its certificate; join tokens pin the first."""
    anchors: tuple[x509.Certificate, ...] = ()
    """What the certificates of nodes and people must lead to; empty: the roots."""

    @classmethod
    def open(cls, folder: Path, *, federation: str, now: float, ca_dir: Path) -> Authority:
        """The authority in `folder`, made at the first start; its issuer is renewed at 2/3 of its life if the root is there.

        Raises CoordinatorError when something is missing that only the root's key can make.
        """
        if not (folder / "issuer.pem").exists():
            create_root(ca_dir, federation=federation, now=now)
            renew_issuer(folder, ca_dir=ca_dir, federation=federation, now=now)
        opened = cls.from_files(federation=federation, roots=folder / "roots.pem", issuer=folder / "issuer.pem")
        if now >= opened.renew_issuer_at and (ca_dir / "root.key").exists():
            renew_issuer(folder, ca_dir=ca_dir, federation=federation, now=now)
            return cls.from_files(federation=federation, roots=folder / "roots.pem", issuer=folder / "issuer.pem")
        return opened

    @classmethod
    def from_files(cls, *, federation: str, roots: Path, issuer: Path | None = None) -> Authority:
        """An authority of one's own: roots to trust, and in `issuer` a key, its certificate and those between it and a root.

        Without `issuer` the coordinator trusts the certificates that others sign below `roots`, and signs none itself.
        """
        try:
            trusted = tuple(x509.load_pem_x509_certificates(roots.read_bytes()))
            if issuer is None:
                return cls(federation=federation, roots=trusted, chain=(), issuer=None)
            body = issuer.read_bytes()
            chain = tuple(x509.load_pem_x509_certificates(body))
            key = load_pem_private_key(body, password=None)
        except (OSError, ValueError, TypeError) as error:
            # The text of a parser's error may quote the file, and the file holds a key.
            raise CoordinatorError(
                f"The certificate authority in {roots.parent} cannot be read ({type(error).__name__}).",
                hint="It needs PEM files: certificates in one, a key without passphrase and its certificate in the other.",
            ) from None
        above = tuple(certificate for certificate in chain if certificate not in trusted)
        _check_chain(chain[0], above[1:], trusted)
        return cls(federation=federation, roots=trusted, chain=above, issuer=Issuer.of(key, chain[0]))

    @property
    def renew_issuer_at(self) -> float:
        """When the root's key is wanted next: 2/3 through the issuer's life. Infinity without an issuer."""
        return certificates.due(self.issuer.certificate) if self.issuer else float("inf")

    @property
    def roots_pem(self) -> str:
        """The roots that nodes trust as coordinator, the pinned one first."""
        first = self._anchor()
        return _pem(self.server_roots or [first, *(root for root in self.roots if root != first)])

    @property
    def signing_roots_pem(self) -> str:
        """The roots of who signs for nodes, whoever signed the coordinator's own certificate."""
        return _pem(self.roots)

    @property
    def anchors_pem(self) -> str:
        """What client certificates must lead to; not only roots, so that an issuer's CA does not vouch for nodes, too."""
        return _pem(self.anchors or self.roots)

    def pin(self) -> str:
        """The digest of the key of the root of the coordinator's certificate: join tokens carry it."""
        return spki.digest(_pem([self.server_roots[0] if self.server_roots else self._anchor()]))

    def sign(self, request: str, *, role: Role, name: str, now: float, lifetime_s: float = NODE_LIFE_S) -> Issued:
        """A certificate that says its holder is `name` in this federation, with the chain below the root.

        Of the request, in PEM, only the key is used. Raises CsrRefused for a bad one, CoordinatorError without an issuer.
        """
        return certificates.node(
            self._signer(),
            self._rest(),
            csr.read(request),
            federation=self.federation,
            role=role,
            name=name,
            now=now,
            lifetime_s=lifetime_s,
        )

    def issue_server(self, path: Path, *, hosts: Sequence[str], now: float) -> float:
        """Write a new key and chain for the coordinator's own names and addresses; returns when to do it again."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = certificates.server(
            self._signer(),
            self._rest(),
            key.public_key(),
            federation=self.federation,
            hosts=hosts,
            now=now,
            lifetime_s=SERVER_LIFE_S,
        )
        _write(path, certificates.key_pem(key) + issued.chain, "coordinator.authority.server")
        return issued.not_before + (issued.not_after - issued.not_before) * 2 / 3

    def _signer(self) -> Issuer:
        if self.issuer is None:
            raise CoordinatorError(
                "This coordinator holds no key to sign certificates with; it only trusts those that others sign.",
                hint="Get the node's certificate from whoever runs that authority, or give the coordinator an issuer of its own.",
            )
        return self.issuer

    def _rest(self) -> str:
        return _pem(self.chain)

    def _anchor(self) -> x509.Certificate:
        """The root that the issuer's chain leads to; the first one without an issuer."""
        top = self.chain[-1] if self.chain else self.issuer.certificate if self.issuer else self.roots[0]
        return next((root for root in self.roots if root == top or issued_by(top, root)), self.roots[0])


def create_root(ca_dir: Path, *, federation: str, now: float) -> None:
    """Make a root in `ca_dir` unless there is one. A key without its certificate gets one; the pin stays that of the key."""
    ca_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (ca_dir / "root.pem").exists():
        return
    key_path = ca_dir / "root.key"
    if not key_path.exists():
        _write(key_path, certificates.key_pem(ec.generate_private_key(ec.SECP256R1())), "coordinator.authority.root-key")
    root = certificates.root(_key(key_path), federation=federation, now=now, lifetime_s=ROOT_LIFE_S)
    _write(ca_dir / "root.pem", _pem([root]), "coordinator.authority.root")


def renew_issuer(folder: Path, *, ca_dir: Path, federation: str, now: float) -> None:
    """Make a new issuer below the root in `ca_dir`, and trust that root. Certificates of the old issuer stay valid."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    root = Issuer.of(_key(ca_dir / "root.key"), x509.load_pem_x509_certificate((ca_dir / "root.pem").read_bytes()))
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = certificates.intermediate(root, key.public_key(), federation=federation, now=now, lifetime_s=ISSUER_LIFE_S)
    trust(folder, _pem([root.certificate]))
    # Last, for it is what `open` looks for: what was cut off before is done again.
    _write(folder / "issuer.pem", certificates.key_pem(key) + _pem([issuer]), "coordinator.authority.issuer")


def trust(folder: Path, root: str) -> None:
    """Trust another root, in PEM, beside those trusted already."""
    path = folder / "roots.pem"
    known = spki.certificates(path.read_text(encoding="ascii")) if path.exists() else []
    _write(path, "".join(dict.fromkeys([*known, *spki.certificates(root)])), "coordinator.authority.roots")


def distrust(folder: Path, pin: str) -> None:
    """Trust the root with this pin no longer; raises CoordinatorError when it is the last one."""
    path = folder / "roots.pem"
    left = [block for block in spki.certificates(path.read_text(encoding="ascii")) if spki.digest(block) != pin]
    if not left:
        raise CoordinatorError("This is the only root that is trusted.", hint="`trust` the one that replaces it first.")
    _write(path, "".join(left), "coordinator.authority.roots")


def _check_chain(issuer: x509.Certificate, above: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> None:
    below = issuer
    for certificate in above:
        if not issued_by(below, certificate):
            break
        below = certificate
    if issuer not in roots and not any(issued_by(below, root) for root in roots):
        raise CoordinatorError(
            "The issuer's certificate does not lead to a trusted root.",
            hint="Its file must hold the issuer's certificate first, then each one above it.",
        )


def issued_by(below: x509.Certificate, above: x509.Certificate) -> bool:
    """Whether the key of `above` signed `below`."""
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key(path: Path) -> certificates.SigningKey:
    if not path.exists():
        raise CoordinatorError(
            f"The root's key is not at {path}, and it is needed now.",
            hint="Bring it back for this one start; it may go again afterwards.",
        )
    return certificates.signing_key(load_pem_private_key(path.read_bytes(), password=None))


def _pem(chain: Sequence[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)


def _write(path: Path, text: str, point: str) -> None:
    durable.write(path, text.encode("ascii"), point=point)
