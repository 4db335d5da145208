"""An organisation's own CA: the how-to as it is written, and what such a federation does and refuses."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from freehold.cli.login import remote, sign_in
from freehold.errors import FreeholdError
from freehold.node import credentials
from freehold.node.join import Network, join, renew
from freehold.node.outside import Files
from freehold.wire import spki
from freehold.wire.admin import Done, Status, Subject, TokenMade, TokenRequest
from freehold.wire.client import Connection, trusting
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import RenewRequest, WorkRequest
from freehold.wire.routes import RENEW, WORK
from tests.federation.harness import Federation
from tests.federation.peer import Peer
from tests.federation.programs import Running, freehold, left_behind, short_folder
from tests.unit.coordinator.test_ownca import Made, make
from tests.unit.enrolment.world import csr, pem_of

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-your-own-ca.md"


def follow(page: Path, folder: Path) -> None:
    """Run the shell blocks of the page, with this machine's name in place of the example's."""
    text = page.read_text(encoding="utf-8").replace("fl.example.org", "localhost")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        done = subprocess.run(["bash", "-euc", block], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (block, done.stderr)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The files that the page makes."""
    follow(PAGE, tmp_path)
    return tmp_path


def test_the_how_to_as_it_is_written() -> None:
    """All three ways at once, as commands: one node with a token, one with a certificate."""
    with short_folder() as home, ExitStack() as running:
        ca = home / "ca"
        ca.mkdir()
        follow(PAGE, ca)
        given = ("--federation", "cardio", "--port", "0", "--name", "localhost")
        given += ("--server-cert", str(ca / "server.pem"), "--server-key", str(ca / "server.key"))
        given += ("--issuer-cert", str(ca / "issuer.pem"), "--issuer-key", str(ca / "issuer.key"))
        done = freehold(home, "coordinator", "init", *given, "--client-ca", ca / "root.pem")
        assert done.returncode == 0, done.stderr
        assert spki.digest((ca / "root.pem").read_text()) in done.stdout
        assert not (home / "freehold" / "coordinator" / "ca").exists()
        coordinator = Running(home, "coordinator", "start", "--log", "plain")
        running.callback(coordinator.stop)
        url = coordinator.wait_for("Coordinator of federation").split()[-1]
        assert url.startswith("https://localhost:")
        (home / "bob.token").write_text(freehold(home, "token", "create", "--node", "bob").stdout)
        own = ("--cert", ca / "alice.pem", "--key", ca / "alice.key", "--ca", ca / "root.pem")
        ways = {"alice": own, "bob": ("--join-file", home / "bob.token")}
        nodes = [
            Running(home, "node", "start", "--name", n, "--coordinator", url, *way, "--log", "json") for n, way in ways.items()
        ]
        for node in nodes:
            running.callback(node.stop)
            node.wait_for("coordinator.connected")
        told = json.loads(freehold(home, "status", "--json").stdout)
        assert [(each["name"], each["connected"]) for each in told["nodes"]] == [("alice", True), ("bob", True)]
        assert nodes[0].stop() == 0
        again = freehold(home, "node", "start", "--name", "bob", "--state", home / "freehold" / "node-alice", *own)
        assert (again.returncode, "130" in again.stderr) == (2, True), again
        assert freehold(home, "node", "status", "--name", "alice").returncode == 1
        # The next start needs no flags, and leaving finds the files.
        nodes[0] = Running(home, "node", "start", "--name", "alice", "--log", "json")
        nodes[0].wait_for("coordinator.connected")
        nodes[0].stop()
        receipt = json.loads(freehold(home, "node", "leave", "--name", "alice", "--json").stdout)
        assert receipt["node"] == "alice"
        assert (ca / "alice.key").exists(), "others' files are left alone"
        running.close()
        assert left_behind(home) == []


@pytest.fixture
def federation(made: Path, fork: Path) -> Iterator[Federation]:
    """A coordinator that takes the certificates of the page's root as nodes; federation `test`."""
    found = Federation(made, [], fork=fork, settings={"client_ca": str(made / "root.pem")})
    found.start()
    try:
        yield found
    finally:
        found.stop()


def signed(folder: Path, uri: str | None, *, end: float = 86400.0) -> Files:
    """Certificate, key and roots of a client, issued by the page's root."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    root = Made(
        certificate=x509.load_pem_x509_certificate((folder / "root.pem").read_bytes()),
        key=load_pem_private_key((folder / "root.key").read_bytes(), password=None),  # type: ignore[arg-type]
    )
    client = make("client", root, names=[] if uri is None else [uri], usages=[x509.ExtendedKeyUsageOID.CLIENT_AUTH], end=end)
    files = Files(cert=folder / "c.pem", key=folder / "c.key", ca=folder / "c.ca", url="")
    files.cert.write_text(client.pem)
    files.key.touch(0o600)
    files.key.write_text(pem_of(client.key))
    return files


def peer(federation: Federation, files: Files, name: str = "zed") -> Peer:
    """A node that speaks with these files as they are, whatever a node of ours would say to them."""
    files.ca.write_text((federation.folder / "coordinator" / "authority" / "roots.pem").read_text())
    found = Peer(federation, name, None, roots=files.ca.read_text())
    found.trust = trusting(files.ca.read_text(), (files.cert, files.key))
    return found


def log(federation: Federation) -> list[tuple[str, str, int]]:
    engine = sa.create_engine(f"sqlite:///{federation.folder / 'coordinator' / 'coordinator.sqlite'}")
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.text("select event, name, outcome from enrolment_log order by id"))]
    engine.dispose()
    return found


def test_a_certificate_from_elsewhere_is_a_node_and_is_noted_once(federation: Federation, made: Path) -> None:
    zed = peer(federation, signed(made, "spiffe://test/node/zed"))
    for _ in range(2):
        assert zed.work().work is None
    federation.coordinator.stop()
    federation.start_coordinator()
    zed.close()
    zed.work()
    assert log(federation) == [("seen", "zed", 0)]
    zed.close()
    zed = peer(federation, signed(made, "spiffe://test/node/zed"))  # renewed
    zed.work()
    assert log(federation) == [("seen", "zed", 0)] * 2
    assert [node.name for node in federation.admin.get("/v1/status", Status).nodes] == ["zed"]
    federation.admin.post("/v1/deny", Subject(name="node/zed"), Done)
    assert zed.is_cut()
    assert zed.post(WORK.path, WorkRequest()).code == 404
    zed.close()


@pytest.mark.parametrize(
    "uri", [None, "spiffe://other/node/zed", "spiffe://test/node/zed/x", "https://test/node/zed", "spiffe://test/operator/zed"]
)
def test_a_certificate_without_the_name_of_a_node_of_this_federation_is_refused(
    federation: Federation, made: Path, uri: str | None
) -> None:
    zed = peer(federation, signed(made, uri))
    answer = zed.post(WORK.path, WorkRequest(datasets=["heart"]))
    assert (answer.status, answer.code) == (403, 403)
    assert json.loads(answer.body)["hint"]
    assert zed.send("GET", "/v1/admin/status", {}).code == 403, "whoever vouches for nodes does not make operators"
    assert log(federation) == []
    zed.close()


def test_what_others_signed_is_not_renewed_here_and_leaving_is_by_name(federation: Federation, made: Path) -> None:
    zed = peer(federation, signed(made, "spiffe://test/node/zed"))
    zed.work()
    answer = zed.post(RENEW.path, RenewRequest(csr=csr()))
    assert answer.code == 403 and b"the CA that signed it" in answer.body
    assert zed.post("/v1/leave", b'{"version":1}').code == 0
    zed.close()
    again = peer(federation, signed(made, "spiffe://test/node/zed"))
    assert again.post(WORK.path, WorkRequest()).code == 404
    again.close()
    federation.admin.post("/v1/allow", Subject(name="node/zed"), Done)
    assert again.post(WORK.path, WorkRequest()).code == 0
    again.close()


def test_a_node_takes_files_that_others_renewed(federation: Federation, made: Path) -> None:
    files = signed(made, "spiffe://test/node/zed")
    files.ca.write_text((made / "coordinator" / "authority" / "roots.pem").read_text())
    own = ("--cert", files.cert, "--key", files.key, "--ca", files.ca)
    node = Running(made, "--name", "zed", "--coordinator", federation.url, *own, "--log", "json", module="freehold.node")
    try:
        node.wait_for("coordinator.connected")
        key = files.key.read_text()
        files.key.write_text(pem_of(make("x").key))
        node.wait_for("certificate.not_renewed")
        files.key.write_text(key)
        node.wait_for("certificate.renewed")
        signed(made, "spiffe://test/node/zed", end=7200.0)
        node.wait_for("certificate.renewed")
        federation.until(lambda: log(federation) == [("seen", "zed", 0)] * 2)
    finally:
        assert node.stop() == 0


def test_below_an_issuer_only_its_own_certificates_count(made: Path, fork: Path) -> None:
    settings = {"issuer_cert": str(made / "issuer.pem"), "issuer_key": str(made / "issuer.key")}
    federation = Federation(made, [], fork=fork, settings=settings)
    federation.start()
    try:
        token = JoinToken.parse(federation.admin.post("/v1/tokens", TokenRequest(node="bob"), TokenMade).token)
        assert token.pin == spki.digest((made / "root.pem").read_text())
        bob = Peer(federation, "bob", join(made / "bob", token, url=federation.url, node="bob", network=Network()))
        assert bob.work().work is None
        assert credentials.load(made / "bob").membership.federation == "test", "which the root does not name"
        renew(made / "bob", Network())
        bob.close()
        token = JoinToken.parse(federation.admin.post("/v1/tokens", TokenRequest(role="operator", node="olga"), TokenMade).token)
        sign_in(made / "olga", token, url=federation.url, network=Network())
        assert remote(federation.url, made / "olga").get("/v1/status", Status).federation == "test"
        files = signed(made, "spiffe://test/node/zed")  # by the root above the issuer
        connection = Connection(federation.url, trusting((made / "root.pem").read_text(), (files.cert, files.key)))
        with pytest.raises(FreeholdError):
            connection.post(WORK.path, WorkRequest(), Status)
        connection.close()
        assert [node.name for node in federation.admin.get("/v1/status", Status).nodes] == ["bob"]
    finally:
        federation.stop()


def test_the_coordinator_takes_a_renewed_certificate_and_leaves_a_broken_one(made: Path, fork: Path) -> None:
    given = {"server_cert": str(made / "server.pem"), "server_key": str(made / "server.key"), "names": ["localhost"]}
    federation = Federation(made, [], fork=fork, settings=given)
    federation.start()
    try:
        before, key = shown(federation, made), (made / "server.key").read_text()
        (made / "server.key").write_text(pem_of(make("x").key))
        federation.coordinator.wait_for("certificate.not_renewed", code=130)
        assert shown(federation, made) == before
        (made / "server.key").write_text(key)
        federation.coordinator.wait_for("certificate.renewed")
        follow(PAGE, made)  # another root and all: nodes that pinned the old one would not go along
        federation.coordinator.wait_for("certificate.renewed")
        assert shown(federation, made) != before
    finally:
        federation.stop()


def shown(federation: Federation, folder: Path) -> str:
    """The certificate of the coordinator as a new connection sees it."""
    return ssl.get_server_certificate(("localhost", federation.port), ca_certs=str(folder / "root.pem"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--server-cert", "server.pem", "--server-key", "server.key", "--name", "b.org"),
            "not for b.org",
        ),
        (("--server-cert", "server.pem", "--server-key", "issuer.key"), "does not belong"),
        (("--server-cert", "alice.pem", "--server-key", "alice.key", "--root-ca", "root.pem"), "serverAuth"),
        (("--issuer-cert", "server.pem", "--issuer-key", "server.key"), "is no CA"),
        (("--issuer-cert", "issuer.leaf", "--issuer-key", "issuer.key"), "does not lead to a root"),
        (("--client-ca", "alice.pem"), "is no CA"),
        (("--server-cert", "server.pem"), "no server key"),
    ],
)
def test_the_command_refuses_what_does_not_fit(made: Path, given: tuple[str, ...], said: str) -> None:
    arguments = [made / each if (made / each).is_file() else each for each in given]
    for command in ("init", "start"):
        done = freehold(made, "coordinator", command, "--state", made / "s", *arguments)
        assert (done.returncode, "130" in done.stderr) == (2, True), done
        assert said in " ".join(done.stderr.split())
        assert not (made / "s" / "authority").exists(), "nothing is made before all is looked at"
