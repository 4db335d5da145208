"""An organisation's own CA in place of Freehold's: its files, read and checked before anything listens.

A server certificate that it signed, an issuer below it under which node certificates are signed here, or roots whose client
certificates are nodes as they are. Each may be there without the others. All files are PEM; a chain's file holds the
certificate first, then those above it, and its root either last or in `root_ca`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from freehold.coordinator.authority import Authority, issued_by
from freehold.coordinator.certificates import Issuer
from freehold.errors import CertificateUnfit, CoordinatorError
from freehold.wire.ownfiles import check_private, read_file


@dataclass(frozen=True, kw_only=True)
class OwnCertificates:
    """Which files there are."""

    server_cert: Path | None = None
    server_key: Path | None = None
    issuer_cert: Path | None = None  # after its chain there may be issuers from before, whose certificates still count
    issuer_key: Path | None = None
    client_ca: Path | None = None
    root_ca: Path | None = None  # roots, where the files above do not end with them

    def __post_init__(self) -> None:
        for name, cert, key in (
            ("server", self.server_cert, self.server_key),
            ("issuer", self.issuer_cert, self.issuer_key),
        ):
            if (cert is None) != (key is None):
                missing, there = ("key", "cert") if key is None else ("cert", "key")
                raise CertificateUnfit(
                    f"There is a {name} {there}, but no {name} {missing}.", hint=f"Give --{name}-cert and --{name}-key together."
                )


class Server(NamedTuple):
    """The coordinator's own certificate, checked: its names, its root, and until when it is valid (Unix time)."""

    names: tuple[str, ...]
    root: x509.Certificate
    not_after: float


class _Chain(NamedTuple):
    leaf: x509.Certificate
    above: tuple[x509.Certificate, ...]
    root: x509.Certificate
    others: tuple[x509.Certificate, ...]


def open_authority(
    own: OwnCertificates, folder: Path, *, federation: str, now: float, ca_dir: Path, names: Sequence[str] = ()
) -> Authority:
    """The authority with what is one's own put in its place; raises CertificateUnfit, and what `Authority.open` does.

    `names`: under which nodes find the coordinator.
    """
    # All that is given is looked at before anything is made.
    extra = () if own.root_ca is None else _read(own.root_ca)
    root = None if own.server_cert is None else check_server(own, names=names, now=now).root
    clients = () if own.client_ca is None else _read(own.client_ca)
    for each in clients:
        _check_ca(each, own.client_ca, now, root=True)
    if own.issuer_cert is None or own.issuer_key is None:
        made = Authority.open(folder, federation=federation, now=now, ca_dir=ca_dir)
    else:
        made = _under_issuer(own, own.issuer_cert, own.issuer_key, federation=federation, now=now)
    anchors = (*(made.anchors or made.roots), *clients)
    if root is not None:
        return replace(made, server_roots=(root, *(each for each in extra if each != root)), anchors=anchors)
    return replace(made, roots=tuple(dict.fromkeys((*made.roots, *extra))), anchors=anchors)


def check_server(own: OwnCertificates, *, names: Sequence[str], now: float) -> Server:
    """The server certificate, if it can be used under all of `names`; raises CertificateUnfit."""
    assert own.server_cert is not None and own.server_key is not None
    chain = _chain(own.server_cert, own.root_ca, now)
    _check_pair(chain.leaf, own.server_cert, own.server_key)
    if Usage.SERVER_AUTH not in _usages(chain.leaf):
        raise CertificateUnfit(
            f"The certificate in {own.server_cert} is not for a server: its extended key usage lacks serverAuth.",
            hint="Have it issued with extendedKeyUsage=serverAuth.",
        )
    shown = _names(chain.leaf)
    if not shown:
        raise CertificateUnfit(
            f"The certificate in {own.server_cert} has neither a DNS name nor an address.",
            hint="Have it issued with subjectAltName=DNS:… of the coordinator.",
        )
    strange = [name for name in names if not any(_fits(name, pattern) for pattern in shown)]
    if strange:
        raise CertificateUnfit(
            f"The certificate in {own.server_cert} is for {', '.join(shown)}, not for {', '.join(strange)}.",
            hint="Give --name as it stands in the certificate, or have one issued for the name that nodes use.",
        )
    return Server(names=shown, root=chain.root, not_after=chain.leaf.not_valid_after_utc.timestamp())


def _under_issuer(own: OwnCertificates, cert: Path, key: Path, *, federation: str, now: float) -> Authority:
    chain = _chain(cert, own.root_ca, now)
    _check_ca(chain.leaf, cert, now)
    for below, above in enumerate((*chain.above, chain.root)):
        length = above.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        if length is not None and length < below + 1 and above != chain.leaf:
            raise CertificateUnfit(
                f"A CA above the issuer in {cert} has path length {length}: it allows no {below + 1} CAs below it.",
                hint="Have the issuer signed by a CA whose pathlen is larger, or is not set.",
            )
    usages = _usages(chain.leaf)
    needed = {Usage.CLIENT_AUTH} if own.server_cert is not None else {Usage.CLIENT_AUTH, Usage.SERVER_AUTH}
    if usages and not needed <= usages and Usage.ANY_EXTENDED_KEY_USAGE not in usages:
        raise CertificateUnfit(
            f"The issuer in {cert} may not sign certificates for this: its extended key usage is too narrow.",
            hint="It needs clientAuth, and serverAuth where there is no --server-cert; or no extended key usage at all.",
        )
    signing = _check_pair(chain.leaf, cert, key)
    try:
        issuer = Issuer.of(signing, chain.leaf)
    except CoordinatorError as error:
        raise CertificateUnfit(error.message, hint=error.hint) from None
    whole = () if chain.leaf == chain.root else (chain.leaf, *chain.above)
    earlier = tuple(each for each in chain.others if _is_ca(each))
    return Authority(federation=federation, roots=(chain.root,), chain=whole, issuer=issuer, anchors=(chain.leaf, *earlier))


def _chain(path: Path, root_ca: Path | None, now: float) -> _Chain:
    """A file's first certificate with those above it, up to a root; raises CertificateUnfit."""
    first, *rest = _read(path)
    roots = [*(_read(root_ca) if root_ca else ()), *(each for each in (first, *rest) if issued_by(each, each))]
    _check_dates(first, path, now)
    top, left = first, [each for each in rest if each not in roots]
    above: list[x509.Certificate] = []
    while True:
        root = next((each for each in roots if top == each or issued_by(top, each)), None)
        if root is not None:
            if root != first:
                _check_ca(root, path, now, root=True)
            return _Chain(first, tuple(above), root, tuple(left))
        higher = next((each for each in left if issued_by(top, each)), None)
        if higher is None:
            raise CertificateUnfit(
                f"The chain in {path} does not lead to a root: nothing in it signed {top.subject.rfc4514_string()!r}.",
                hint="Append the certificates above it and the root, or give the root with --root-ca.",
            )
        _check_ca(higher, path, now)
        left.remove(higher)
        above.append(higher)
        top = higher


def _check_ca(certificate: x509.Certificate, path: Path | None, now: float, *, root: bool = False) -> None:
    """Raise CertificateUnfit unless it may sign others now; many a root has no key usage, and then may."""
    if not _is_ca(certificate):
        raise CertificateUnfit(
            f"{certificate.subject.rfc4514_string()!r} in {path} is no CA: its basic constraints do not say so.",
            hint="Have it issued with basicConstraints=critical,CA:TRUE.",
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if not (usage.key_cert_sign if usage else root):
        raise CertificateUnfit(
            f"{certificate.subject.rfc4514_string()!r} in {path} may not sign certificates: its key usage lacks keyCertSign.",
            hint="Have it issued with keyUsage=critical,keyCertSign,cRLSign.",
        )
    _check_dates(certificate, path, now)


def _check_dates(certificate: x509.Certificate, path: Path | None, now: float) -> None:
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not begin <= now < end:
        raise CertificateUnfit(
            f"{certificate.subject.rfc4514_string()!r} in {path} {'has expired' if now >= end else 'is not valid yet'}.",
            hint="Renew it at your CA, or set this machine's clock.",
        )


def _check_pair(certificate: x509.Certificate, cert: Path, key: Path) -> object:
    """The private key that fits the certificate."""
    check_private(key)
    try:
        found = load_pem_private_key(read_file(key), password=None)
        fits = found.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The parser's words may quote the file.
        raise CertificateUnfit(
            f"{key} holds no private key that can be read.",
            hint="It must be PEM, without a passphrase; `openssl pkey` writes it so.",
        ) from None
    if not fits:
        raise CertificateUnfit(
            f"The key in {key} does not belong to the first certificate in {cert}.",
            hint="Give the two that were made together; the certificate stands first in its file.",
        )
    return found


def _read(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        found = x509.load_pem_x509_certificates(read_file(path))
    except ValueError:
        found = []
    if not found:
        raise CertificateUnfit(f"{path} holds no certificate in PEM.", hint="`openssl x509 -inform DER` turns DER into it.")
    return tuple(found)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(each) for each in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _fits(name: str, pattern: str) -> bool:
    """As TLS clients hold a name against one in a certificate: a star stands for the first label, and for no address."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(pattern)
    except ValueError:
        pass
    name, pattern = name.lower().rstrip("."), pattern.lower()
    return name == pattern or (pattern.startswith("*.") and name.partition(".")[2] == pattern[2:])
