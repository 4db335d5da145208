"""The real client against the real server, over real TLS on loopback."""

from __future__ import annotations

import datetime
import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import (
    BodyRefused,
    CertificateRefused,
    CoordinatorError,
    Denied,
    EncodingRefused,
    NoCertificate,
    NotJoined,
    PinMismatch,
    ProtocolVersion,
    TooLarge,
    Unreachable,
    UsageError,
    WireError,
)
from freehold.wire import local as between
from freehold.wire.client import Connection, Timeouts, fetch_roots, trusting
from freehold.wire.ingest import Pace
from freehold.wire.messages import Certificate, EnrollRequest, Message, Pending, WorkReply, WorkRequest
from freehold.wire.server import Identity, save_connection_memory
from tests.unit.wire.party import BLOB_BYTES, HOST, NOW, Authority, Coordinator, Proxy, local, running

RUN = "0123456789abcdef-0"
BLOB_PATH = "/v1/blobs/" + "0" * 64
BLOB_SHA256 = hashlib.sha256(BLOB_BYTES).hexdigest()
ENROLL = EnrollRequest(federation="heart", node="alice", token_id="0" * 8, secret="x" * 32, csr="")
BIG = bytes(range(250)) * 2000


class Party:
    """An authority, its coordinator, and nodes that are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "root")
        (folder / "bodies").mkdir()
        self.bodies = folder / "bodies"
        self.opened: list[Connection] = []

    def node(self, *ports: int, certificate: Any = "own", find: Any = None, **timeouts: float) -> Connection:
        shown = self.authority.node() if certificate == "own" else certificate
        made = Connection(
            f"https://{HOST}:8443",
            trusting(self.authority.pem, shown),
            find=find or local(*ports),
            timeouts=Timeouts(**{"connect_s": 10.0, "read_s": 10.0, **timeouts}),
        )
        self.opened.append(made)
        return made


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    made = Party(tmp_path)
    yield made
    for node in made.opened:
        node.close()


@pytest.fixture
def coordinator(party: Party) -> Iterator[Coordinator]:
    with running(party.authority, party.bodies) as made:
        yield made


def work(node: Connection) -> WorkReply:
    return node.post("/v1/work", WorkRequest(pending=[Pending(run=RUN, round=1)]), WorkReply)


def put(node: Connection, body: bytes, **changes: Any) -> WorkReply:
    asked = {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body), "pieces": [memoryview(body)], **changes}
    return node.put(f"/v1/contributions/{RUN}/0", {"Freehold-Weight": "1"}, reply=WorkReply, **asked)


def test_messages_go_over_one_connection(party: Party, coordinator: Coordinator) -> None:
    node = party.node(coordinator.port)
    assert work(node).settled[0].counted
    assert work(node) == work(node)
    assert len(coordinator.connections) == 3
    assert len(set(coordinator.connections)) == 1


def test_a_message_of_another_version_is_told_which(party: Party, coordinator: Coordinator) -> None:
    class Future(Message, frozen=True, kw_only=True):
        version: int = 2

    node = party.node(coordinator.port)
    with pytest.raises(ProtocolVersion, match="version 2 of the protocol, this one 1"):
        node.post("/v1/work", Future(), WorkReply)
    work(node)
    told = coordinator.events.get(timeout=5).fields
    assert told == {"code": 501, "status": 426, "route": "/v1/work", "who": "node/alice", "address": "127.0.0.1"}


def test_what_is_not_the_message_is_refused(party: Party, coordinator: Coordinator) -> None:
    with pytest.raises(WireError, match="WorkRequest was expected"):
        party.node(coordinator.port).post("/v1/work", ENROLL, WorkReply)
    with pytest.raises(TooLarge):
        party.node(coordinator.port).post("/v1/work", WorkRequest(datasets=["a" * 63] * 20_000), WorkReply)
    with pytest.raises(WireError, match="Not Found"):
        party.node(coordinator.port).get("/v1/elsewhere")


def test_an_unexpected_failure_tells_nothing(party: Party, coordinator: Coordinator) -> None:
    with pytest.raises(CoordinatorError) as caught:
        party.node(coordinator.port).get("/v1/broken")
    assert "secret" not in str(caught.value)
    failed = coordinator.events.get(timeout=5)
    assert (failed.name, failed.fields["kind"]) == ("request.failed", "ValueError")
    assert str(failed.fields["place"]).startswith("party.py:")


def test_without_a_certificate_a_node_may_enroll_and_nothing_else(party: Party, coordinator: Coordinator) -> None:
    node = party.node(coordinator.port, certificate=None)
    assert node.post("/v1/enroll", ENROLL, Certificate, repeatable=False).node == "alice"
    with pytest.raises(NoCertificate):
        work(node)
    assert coordinator.events.get(timeout=5).fields["who"] == "-"


def test_a_certificate_that_runs_out_is_refused_on_the_live_connection(party: Party, coordinator: Coordinator) -> None:
    node = party.node(coordinator.port)
    work(node)
    coordinator.now += 86_400
    with pytest.raises(CertificateRefused, match="out of its dates"):
        work(node)
    assert coordinator.events.get(timeout=5).fields["who"] == "node/alice"
    coordinator.now = NOW.timestamp()
    work(node)
    first, *others = coordinator.connections
    assert others[-1] != first, "whoever was refused comes back with the certificate of then"


@pytest.mark.parametrize(
    "uri", ["spiffe://heart/node", "https://heart/node/alice", "spiffe://heart/node/alice/x", "spiffe://heart/node/Alice"]
)
def test_a_certificate_without_a_proper_name_is_refused(party: Party, coordinator: Coordinator, uri: str) -> None:
    with pytest.raises(CertificateRefused, match="does not name"):
        work(party.node(coordinator.port, certificate=party.authority.node(uri=uri)))
    assert coordinator.events.get(timeout=5).fields["who"] == "-"


def test_a_denied_node_is_cut_at_once(party: Party, coordinator: Coordinator) -> None:
    node = party.node(coordinator.port)
    failures: list[Exception] = []

    def poll() -> None:
        try:
            node.get("/v1/hold")
        except Exception as error:
            failures.append(error)

    polling = threading.Thread(target=poll)
    polling.start()
    assert coordinator.holding.wait(10)
    alice = Identity(federation="heart", role="node", name="alice", serial="", not_before=0.0, not_after=0.0)
    coordinator.denied.add("alice")
    assert coordinator.call(lambda: coordinator.peers.drop(alice)) == 1
    polling.join(10)
    # The connection was cut, and the one attempt that follows is refused.
    assert [type(error) for error in failures] in ([Denied], [Unreachable])
    with pytest.raises(Denied):
        work(node)


def test_a_foreign_coordinator_is_found_out(party: Party, coordinator: Coordinator, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    node = Connection(f"https://{HOST}", trusting(stranger.pem), find=local(coordinator.port))
    party.opened.append(node)
    with pytest.raises(PinMismatch, match="not of this federation"):
        node.get("/v1/ca")
    other = Connection("https://other.test", trusting(party.authority.pem), find=local(coordinator.port))
    with pytest.raises(PinMismatch, match=r"other\.test"):
        other.get("/v1/ca")


def test_a_foreign_node_is_not_let_in(party: Party, coordinator: Coordinator, tmp_path: Path) -> None:
    node = party.node(coordinator.port, certificate=Authority(tmp_path, "stranger").node())
    # The reason comes as a TLS alert, which is lost when the connection is reset first.
    with pytest.raises((CertificateRefused, Unreachable)):
        work(node)


def test_a_renewed_certificate_counts_after_a_reconnect(party: Party, coordinator: Coordinator) -> None:
    files = party.authority.node("bob", uri="spiffe://heart/node/Bob")
    node = party.node(coordinator.port, certificate=files)
    with pytest.raises(CertificateRefused):
        work(node)
    for old, new in zip(files, party.authority.node(), strict=True):
        old.write_bytes(new.read_bytes())
    node.close()
    work(node)


def test_a_certificate_that_cannot_be_read_is_not_the_networks_fault(party: Party, coordinator: Coordinator) -> None:
    certificate, key = party.authority.node()
    for files in ((certificate, key.with_name("gone")), (certificate, party.authority.node()[1])):
        with pytest.raises(NotJoined):
            work(party.node(coordinator.port, certificate=files))


@pytest.mark.parametrize("head", ["X: " + "x" * 100_000, "\r\n".join(f"X{i}: x" for i in range(200))])
def test_too_many_headers_are_refused(party: Party, coordinator: Coordinator, head: str) -> None:
    with raw(party, coordinator.port, head) as tls:
        assert tls.recv(100).split(b" ")[1] == b"400"


def test_a_node_reconnects_after_a_restart(party: Party) -> None:
    with running(party.authority, party.bodies) as first:
        node = party.node(first.port)
        work(node)
    with pytest.raises(Unreachable, match="does not answer"):
        work(node)
    with running(party.authority, party.bodies, port=first.port):
        work(node)


def test_a_stale_connection_is_replaced_unseen(party: Party) -> None:
    with running(party.authority, party.bodies) as first:
        node = party.node(first.port)
        work(node)
    with running(party.authority, party.bodies, port=first.port) as second:
        work(node)
        assert len(second.connections) == 1


def test_the_name_is_found_anew_and_every_address_is_tried(party: Party) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    ports: list[tuple[int, ...]] = []
    with running(party.authority, party.bodies) as first:
        ports.append((closed, first.port))
        node = party.node(find=lambda host, port: local(*ports[-1])(host, port))
        work(node)
    with running(party.authority, party.bodies) as second:
        ports.append((second.port,))
        work(node)
        assert len(second.connections) == 1


def test_a_proxy_is_passed_and_no_proxy_is_kept(party: Party, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(coordinator.port)
    monkeypatch.setenv("HTTPS_PROXY", f"http://us%65r:pass@127.0.0.1:{proxy.port}")
    node = party.node(proxy.port)
    work(node)
    node.close()
    proxy.close()
    assert proxy.asked[0].startswith(b"CONNECT coordinator.test:8443 HTTP/1.1\r\nHost: coordinator.test:8443\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in proxy.asked[0]
    monkeypatch.setenv("NO_PROXY", ".test")
    work(party.node(coordinator.port))


def test_a_proxy_that_refuses_is_named(party: Party, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(coordinator.port, answer=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
    with pytest.raises(Unreachable, match="proxy refuses the connection with status 403"):
        work(party.node(proxy.port))
    proxy.close()
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError):
        work(party.node(proxy.port))


def test_a_coordinator_that_stalls_is_given_up(party: Party) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unreachable, match="timed out"):
        work(party.node(silent.getsockname()[1], connect_s=0.1))


def test_joining_checks_the_pin(party: Party, coordinator: Coordinator) -> None:
    address = f"https://{HOST}:1"
    assert fetch_roots(address, party.authority.pin, find=local(coordinator.port)) == party.authority.pem
    with pytest.raises(PinMismatch, match="join token names"):
        fetch_roots(address, "0" * 64, find=local(coordinator.port))


@pytest.mark.parametrize("address", ["http://host", "host", "https://", "https://host/path", "https://host?x=1"])
def test_an_address_must_be_one(address: str) -> None:
    with pytest.raises(UsageError):
        Connection(address, trusting(""))


def test_a_blob_is_streamed_into_memory_that_is_sealed(party: Party, coordinator: Coordinator) -> None:
    node, memory = party.node(coordinator.port), between.Memory("blob")
    node.get_blob(BLOB_PATH, len(BLOB_BYTES), BLOB_SHA256, memory)
    fd = memory.seal()
    assert between.read(fd) == BLOB_BYTES
    between.close([fd])
    work(node)
    assert len(set(coordinator.connections)) == 1


@pytest.mark.parametrize(("length", "sha256"), [(len(BLOB_BYTES) - 1, BLOB_SHA256), (len(BLOB_BYTES), "0" * 64)])
def test_another_blob_than_announced_is_refused(party: Party, coordinator: Coordinator, length: int, sha256: str) -> None:
    node, memory = party.node(coordinator.port), between.Memory("blob")
    with pytest.raises(BodyRefused):
        node.get_blob(BLOB_PATH, length, sha256, memory)
    between.close([memory.fd])
    work(node)


@pytest.mark.parametrize("body", [b"", b"small", bytes(1 << 16)])
def test_a_small_body_stays_in_memory(party: Party, coordinator: Coordinator, body: bytes) -> None:
    assert put(party.node(coordinator.port), body).received
    assert coordinator.bodies == [body]
    assert not list(party.bodies.iterdir())


def test_a_large_body_becomes_a_file(party: Party, coordinator: Coordinator) -> None:
    node = party.node(coordinator.port)
    assert put(node, BIG).received
    (path,) = coordinator.bodies
    assert isinstance(path, Path)
    assert path.read_bytes() == BIG
    assert path.stat().st_mode & 0o777 == 0o600
    work(node)


@pytest.mark.parametrize("body", [b"small", BIG])
def test_another_digest_is_refused_and_leaves_nothing(party: Party, coordinator: Coordinator, body: bytes) -> None:
    node = party.node(coordinator.port)
    with pytest.raises(BodyRefused, match="announced digest"):
        put(node, body, sha256="0" * 64)
    assert not list(party.bodies.iterdir())
    work(node)


def test_a_body_above_the_limit_is_refused_before_it_is_read(party: Party) -> None:
    with running(party.authority, party.bodies, limit_bytes=1000) as coordinator:
        node = party.node(coordinator.port)
        with pytest.raises(TooLarge, match="500000 bytes"):
            put(node, BIG)
        with pytest.raises(TooLarge):
            put(node, BIG)
        assert not list(party.bodies.iterdir())


def test_pieces_that_can_be_read_once_are_sent_once(party: Party, coordinator: Coordinator) -> None:
    assert put(party.node(coordinator.port), BIG, pieces=iter([BIG[:1000], BIG[1000:]])).received


def raw(party: Party, port: int, head: str, body: bytes = b"") -> Any:
    """A TLS socket on which the beginning of an upload was sent."""
    context = trusting(party.authority.pem, party.authority.node())()
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=HOST)
    lines = [f"PUT /v1/contributions/{RUN}/0 HTTP/1.1", f"Host: {HOST}", "Freehold-Sha256: " + "0" * 64, head, "", ""]
    tls.sendall("\r\n".join(lines).encode() + body)
    return tls


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ("Transfer-Encoding: chunked", BodyRefused.code),
        ("Content-Length: 5\r\nContent-Encoding: gzip", EncodingRefused.code),
        ("Content-Length: 5\r\nContent-Encoding: zstd", EncodingRefused.code),
    ],
)
def test_a_body_without_its_length_or_packed_is_refused(party: Party, coordinator: Coordinator, head: str, code: int) -> None:
    with raw(party, coordinator.port, head, b"5\r\nhello\r\n0\r\n\r\n" if "chunked" in head else b"hello") as tls:
        assert tls.recv(100).startswith(b"HTTP/1.1 400")
    assert coordinator.events.get(timeout=5).fields["code"] == code


@pytest.mark.parametrize("pace", [Pace(chunk_s=0.05), Pace(grace_s=0.05, least_bytes_per_s=1e9)])
@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_body_that_arrives_too_slowly_is_refused(party: Party, pace: Pace, length: int) -> None:
    with running(party.authority, party.bodies, pace=pace) as coordinator:
        with raw(party, coordinator.port, f"Content-Length: {length}", b"12345") as tls:
            assert tls.recv(100).startswith(b"HTTP/1.1 400")
        assert coordinator.events.get(timeout=5).fields["code"] == BodyRefused.code
        assert not list(party.bodies.iterdir())


@pytest.mark.parametrize("sent", [100, 600_000])
def test_a_body_that_breaks_off_leaves_no_file(party: Party, coordinator: Coordinator, sent: int) -> None:
    raw(party, coordinator.port, "Content-Length: 1000000", bytes(sent)).close()
    assert coordinator.events.get(timeout=10).fields["code"] == BodyRefused.code
    assert not list(party.bodies.iterdir())


def test_what_a_crash_left_is_removed(party: Party) -> None:
    (party.bodies / ".incoming-x.part").touch()
    (party.bodies / "kept").touch()
    with running(party.authority, party.bodies):
        assert [path.name for path in party.bodies.iterdir()] == ["kept"]


def test_a_full_disk_is_the_coordinators_error(party: Party, coordinator: Coordinator) -> None:
    party.bodies.rmdir()
    with pytest.raises(CoordinatorError, match="cannot be written"):
        put(party.node(coordinator.port), BIG)


def test_connections_share_their_receive_buffer(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio.sslproto as sslproto

    monkeypatch.setattr(sslproto.SSLProtocol, "__init__", sslproto.SSLProtocol.__init__)
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    monkeypatch.setattr(sslproto.SSLProtocol, "shares_buffer", False, raising=False)
    assert save_connection_memory() == save_connection_memory() == "shared"
    with running(party.authority, party.bodies) as coordinator:
        nodes = [party.node(coordinator.port) for _ in range(3)]
        for node in nodes:
            assert put(node, BIG).received
        assert [path.read_bytes() == BIG for path in coordinator.bodies if isinstance(path, Path)] == [True] * 3


def test_where_asyncio_looks_different_buffers_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio.sslproto as sslproto

    class Other:
        max_size = 1 << 18

        def get_buffer(self) -> None: ...

    monkeypatch.setattr(sslproto, "SSLProtocol", Other)
    assert save_connection_memory() == "small"
    assert Other.max_size == 1 << 15
    del Other.max_size
    assert save_connection_memory() == "unknown"


def test_dates_are_those_of_the_certificate(party: Party) -> None:
    assert datetime.timedelta(hours=23) == party.authority.root.not_valid_after_utc - NOW.replace(microsecond=0)


def test_a_name_that_is_not_in_the_certificate_is_said_to_be_that(party: Party, coordinator: Coordinator) -> None:
    trust = trusting(party.authority.pem, party.authority.node())
    for host, why in (("elsewhere.test", "Hostname mismatch"), ("127.0.0.2", "IP address mismatch")):
        node = Connection(f"https://{host}:8443", trust, find=local(coordinator.port))
        party.opened.append(node)
        with pytest.raises(PinMismatch, match=f"for another name: {why}") as caught:
            work(node)
        assert caught.value.code == 302 and "--name" in caught.value.hint
