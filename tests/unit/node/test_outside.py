"""An identity from a CA of the organisation's own, as a node reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from freehold.errors import CertificateUnfit, NodeError, UsageError
from freehold.node import credentials, outside
from freehold.node.__main__ import options_of, run
from freehold.node.outside import Files
from freehold.node.service import Service, Settings
from freehold.wire import spki
from tests.unit.coordinator.test_ownca import ROOT, Made, make
from tests.unit.enrolment.world import pem_of

URL = "https://localhost:1"
ALICE = "spiffe://hearts/node/alice"


def written(folder: Path, made: Made, *, key: str | None = None, mode: int = 0o600) -> Files:
    files = Files(cert=folder / "alice.pem", key=folder / "alice.key", ca=folder / "root.pem", url=URL)
    files.cert.write_text(made.pem)
    files.key.write_text(key or pem_of(made.key))
    files.key.chmod(mode)
    files.ca.write_text(ROOT.pem)
    return files


def test_the_certificate_says_who_the_node_is(tmp_path: Path) -> None:
    found = outside.read(written(tmp_path, make("x", ROOT, names=["alice.example.org", ALICE])))
    member = found.membership
    assert (member.federation, member.node, member.role, member.url) == ("hearts", "alice", "node", URL)
    assert found.files == (tmp_path / "alice.pem", tmp_path / "alice.key")


def test_it_is_remembered_and_read_anew_each_time(tmp_path: Path) -> None:
    files = written(tmp_path, make("x", ROOT, names=[ALICE]))
    outside.keep(tmp_path / "state", files)
    first = credentials.load(tmp_path / "state")
    before = outside.version(first)
    written(tmp_path, make("x", ROOT, names=[ALICE], end=7200.0))
    assert credentials.load(tmp_path / "state").not_after != first.not_after
    assert outside.version(first) != before
    (tmp_path / "state" / "identity" / "outside.json").write_text("{}")
    with pytest.raises(NodeError, match="damaged"):
        credentials.load(tmp_path / "state")


LOCKED = ROOT.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()
BAD: dict[str, tuple[Callable[[Path], Files], str]] = {
    "no name": (lambda f: written(f, make("alice", ROOT)), "does not name a node: its URIs are none"),
    "only a host": (lambda f: written(f, make("alice", ROOT, names=["alice"])), "does not name a node"),
    "a person": (lambda f: written(f, make("x", ROOT, names=["spiffe://hearts/operator/olga"])), "does not name a node"),
    "two names": (lambda f: written(f, make("x", ROOT, names=[ALICE, "spiffe://hearts/node/bob"])), "does not name a node"),
    "another key": (lambda f: written(f, make("x", ROOT, names=[ALICE]), key=pem_of(ROOT.key)), "does not belong"),
    "a passphrase": (lambda f: written(f, make("x", ROOT, names=[ALICE]), key=LOCKED), "does not belong"),
    "open to others": (lambda f: written(f, make("x", ROOT, names=[ALICE]), mode=0o644), "open to others"),
    "open to the group": (lambda f: written(f, make("x", ROOT, names=[ALICE]), mode=0o640), "open to others"),
    "no certificate": (lambda f: _over(written(f, make("x", ROOT, names=[ALICE])), "cert"), "no certificate"),
    "no roots": (lambda f: _over(written(f, make("x", ROOT, names=[ALICE])), "ca"), "no certificate"),
}


def _over(files: Files, which: str) -> Files:
    getattr(files, which).write_text("nonsense é")
    return files


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    made, match = BAD[name]
    files = made(tmp_path)
    with pytest.raises(CertificateUnfit, match=match) as caught:
        outside.read(files)
    assert caught.value.hint and "PRIVATE" not in str(caught.value)
    files.key.unlink()
    with pytest.raises(CertificateUnfit):
        outside.read(files)


def test_a_certificate_of_another_node_is_not_used(tmp_path: Path) -> None:
    files = written(tmp_path, make("x", ROOT, names=[ALICE]))
    for name, federation in (("bob", None), ("alice", "lungs")):
        settings = Settings(name=name, state=tmp_path / "state", coordinator=URL, federation=federation, outside=files)
        with pytest.raises(CertificateUnfit, match="that of node 'alice' in federation 'hearts'"):
            Service(settings).identity()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("--cert", "a.pem", "--key", "a.key"), "belong together"),
        (("--cert", "a.pem", "--key", "a.key", "--ca", "r.pem", "--join-file", "t"), "a token or with a certificate"),
        (("--cert", "a.pem", "--key", "a.key", "--ca", "r.pem"), "Where is the coordinator"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, given: tuple[str, ...], match: str) -> None:
    options = options_of(("--name", "alice", "--state", str(tmp_path / "state"), *given), {})
    with pytest.raises(UsageError, match=match):
        run(options)


def test_the_settings_file_may_name_them(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('name = "alice"\ncert = "alice.pem"\nkey = "/run/alice.key"\nca = "root.pem"\n')
    options = options_of(("--state", str(tmp_path)), {})
    assert (options.cert, options.key, options.ca) == (tmp_path / "alice.pem", Path("/run/alice.key"), tmp_path / "root.pem")


def test_uris_are_read_without_cryptography() -> None:
    plain = make("x", ROOT, names=["alice.example.org", ALICE, "192.0.2.1", "spiffe://hearts/node/bob"])
    assert spki.uris(plain.pem) == [ALICE, "spiffe://hearts/node/bob"]
    assert spki.uris(make("x", ROOT, names=["alice.example.org"], signs=True).pem) == []
    assert spki.uris(make("x", ROOT, ca=None).pem) == []
