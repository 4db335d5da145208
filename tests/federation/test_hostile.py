"""A node that lies, stalls and meddles: each attempt gets its number, and the round that is open ends as without it."""

from __future__ import annotations

import gzip
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from freehold.coordinator.authority import Authority
from freehold.errors import PinMismatch
from freehold.node import credentials
from freehold.node.join import Network, join
from freehold.plan import Contribution, Plan, runs_of
from freehold.wire import spki
from freehold.wire.admin import Results, Status, TokenMade, TokenRequest
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Declined, Measured, Measures, Train, WorkRequest, encode
from freehold.wire.routes import BLOB, CONTRIBUTE, DECLINED, ENROLL, LEDGER_HEADER, MEASURES, ROUTES, WORK
from tests.federation.attacks import BODIES, HEADERS, MESSAGES, OTHER_RUN, SECRET, text
from tests.federation.harness import Federation, heart_plan
from tests.federation.peer import Answer, Peer, good, joined, packed
from tests.federation.states import server_state

NODES = ["cleveland", "hungary"]
SETTINGS = {"pace": {"chunk_s": 3.0}, "idle_s": 3.0}


def plan_named(name: str) -> Plan:
    return heart_plan("fedavg", name=name, rounds=1, nodes=len(NODES) + 2)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An open round that waits for mallory and eve; bob is a member without data, who was not asked."""

    federation: Federation
    folder: Path
    mallory: Peer
    eve: Peer
    bob: Peer
    undisturbed: dict[str, Tensor]

    @property
    def plan(self) -> Plan:
        return plan_named("disturbed")

    @property
    def run(self) -> str:
        return runs_of(self.plan)[0].id

    @property
    def spec(self) -> Contribution:
        return runs_of(self.plan)[0].contribution

    @property
    def limit(self) -> int:
        """More than any contribution may be."""
        return (1 << 16) + 8 * (2 + sum(int(np.prod(t.shape)) for t in self.spec.tensors))

    def status(self) -> Status:
        return self.federation.admin.get("/v1/status", Status)


def begin(federation: Federation, name: str, *peers: Peer) -> str:
    digest = federation.run(plan_named(name))
    for peer in peers:
        work = peer.work(wait_s=30.0).work
        assert isinstance(work, Train) and work.cohort == len(NODES) + 2
    return digest


def end(federation: Federation, digest: str, name: str, *peers: Peer) -> Results:
    run = runs_of(plan_named(name))[0].id
    for peer in peers:
        work = peer.work(wait_s=30.0).work
        assert work is not None and not isinstance(work, Train)
        assert peer.decline(run, 1).code == 0
    return federation.finished(digest)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("hostile")
    federation = Federation(folder, NODES, fork=fork, settings=SETTINGS)
    federation.start()
    try:
        mallory, eve, bob = (joined(federation, name, folder) for name in ("mallory", "eve", "bob"))
        for peer in (mallory, eve):
            peer.work()
        digest = begin(federation, "undisturbed", mallory, eve)
        run = runs_of(plan_named("undisturbed"))[0]
        for peer in (mallory, eve):
            assert peer.contribute(run.id, 0, packed(good(run.contribution))).code == 0
        end(federation, digest, "undisturbed", mallory, eve)
        undisturbed = server_state(federation, run.id)
        begin(federation, "disturbed", mallory, eve)
        yield Stage(federation=federation, folder=folder, mallory=mallory, eve=eve, bob=bob, undisturbed=undisturbed)
        for peer in (mallory, eve, bob):
            peer.close()
    finally:
        federation.stop()


def check(stage: Stage, attempt: Callable[[], Answer], code: int, status: int) -> None:
    """Refused with that number, counted once, and told without a word of what was sent."""
    before = stage.status().refused.get(str(code), 0)
    found = attempt()
    assert (found.code, found.status) == (code, status), found
    told = stage.federation.coordinator.wait_for("request.refused", code=code)
    assert told.keys() == {"event", "code", "status", "route", "who", "address"}
    assert told["who"].rpartition("/")[2] in ("mallory", "eve", "bob", "-") and told["address"] == "127.0.0.1"
    assert stage.status().refused[str(code)] == before + 1
    assert SECRET not in (stage.folder / "coordinator.log").read_text()


@pytest.mark.parametrize("name", BODIES)
def test_a_contribution_that_is_none(stage: Stage, name: str) -> None:
    body, code, status = BODIES[name]
    check(stage, lambda: stage.mallory.contribute(stage.run, 0, body(stage.spec)), code, status)


@pytest.mark.parametrize("name", HEADERS)
def test_a_contribution_with_wrong_headers(stage: Stage, name: str) -> None:
    changed, code, status = HEADERS[name]
    body = b"" if changed.get("Content_Length", "") is None else packed(good(stage.spec))
    check(stage, lambda: stage.mallory.contribute(stage.run, 0, body, **changed), code, status)


@pytest.mark.parametrize(
    ("run", "round", "code", "status"),
    [
        (OTHER_RUN, "0", 406, 404),
        ("../../etc", "0", 500, 404),
        ("nonsense", "0", 500, 400),
        ("", "1", 407, 409),
        ("", "999999999", 407, 409),
        ("", "-1", 500, 400),
        ("", "99999999999999999999", 500, 400),
        ("", "0%0A", 500, 400),
        ("", "%D9%A0", 500, 400),
    ],
)
def test_a_contribution_to_something_else(stage: Stage, run: str, round: str, code: int, status: int) -> None:
    check(stage, lambda: stage.mallory.contribute(run or stage.run, round, packed(good(stage.spec))), code, status)


def test_a_run_of_another_study_that_is_over(stage: Stage) -> None:
    run = runs_of(plan_named("undisturbed"))[0].id
    check(stage, lambda: stage.mallory.contribute(run, 0, packed(good(stage.spec))), 406, 404)


def head(path: str, length: object, *more: str, method: str = "PUT") -> bytes:
    fixed = ["Host: x", "Freehold-Version: 1", f"Freehold-Sha256: {'0' * 64}", "Freehold-Weight: 1.0"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fixed, f"Content-Length: {length}", *more, "", ""]).encode()


def answered(tls: ssl.SSLSocket) -> Answer:
    """All that comes until the other side hangs up, or one message."""
    found = b""
    while True:
        status, _, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", status.lower())
        if length and len(body) >= int(length[1]):
            code = json.loads(body).get("code", 0) if body.startswith(b"{") else -1
            return Answer(int(status.split()[1]), code, body)
        piece = tls.recv(65536)
        if not piece:
            return Answer(0, -1, found)
        found += piece


@pytest.mark.parametrize("length", [1 << 20, 1 << 45])
def test_more_than_the_plan_takes_is_refused_unread(stage: Stage, length: int) -> None:
    def attempt() -> Answer:
        with stage.mallory.raw() as tls:
            tls.sendall(head(CONTRIBUTE.at(run=stage.run, round=0), length))
            return answered(tls)

    assert length > stage.limit
    check(stage, attempt, 504, 413)


def test_chunks_without_a_length(stage: Stage) -> None:
    def attempt() -> Answer:
        with stage.mallory.raw() as tls:
            path = CONTRIBUTE.at(run=stage.run, round=0)
            plain = head(path, 0).replace(b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n")
            tls.sendall(plain + b"5\r\nspam!\r\n0\r\n\r\n")
            return answered(tls)

    check(stage, attempt, 503, 400)


def test_a_bomb_is_not_unpacked(stage: Stage) -> None:
    bomb = gzip.compress(bytes(50 << 20))
    check(stage, lambda: stage.mallory.contribute(stage.run, 0, bomb, Content_Encoding="gzip"), 506, 400)
    body = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Content-Length": str(len(bomb))}
    check(stage, lambda: stage.mallory.send("POST", WORK.path, body, bomb), 506, 400)


@pytest.mark.parametrize("length", ["200", "65600"])  # kept in memory, and in a file
def test_a_body_that_ends_too_early(stage: Stage, length: str) -> None:
    before = stage.status().refused.get("503", 0)
    with stage.mallory.raw() as tls:
        tls.sendall(head(CONTRIBUTE.at(run=stage.run, round=0), length) + b"spam" * 40)
    stage.federation.coordinator.wait_for("request.refused", code=503)
    assert stage.status().refused["503"] == before + 1
    assert not list((stage.folder / "coordinator" / "blobs").glob(".incoming-*")), "nothing is left on the disk"


@pytest.mark.parametrize("length", ["200", "65600"])
def test_a_body_that_stalls(stage: Stage, length: str) -> None:
    def attempt() -> Answer:
        with stage.mallory.raw() as tls:
            tls.sendall(head(CONTRIBUTE.at(run=stage.run, round=0), length) + b"spam")
            return answered(tls)

    check(stage, attempt, 503, 400)


@pytest.mark.parametrize("begun", [b"", b"PUT /v1/contrib", b"POST /v1/work HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_headers_that_never_end_are_cut(stage: Stage, begun: bytes) -> None:
    with stage.mallory.raw() as tls:
        tls.sendall(begun)
        assert answered(tls).status in (0, 408), "the connection ends"


@pytest.mark.parametrize("length", ["-1", "spam", "1e3", "99999999999999999999999999"])
def test_lengths_that_are_none(stage: Stage, length: str) -> None:
    with stage.mallory.raw() as tls:
        tls.sendall(head(CONTRIBUTE.at(run=stage.run, round=0), length))
        assert answered(tls).status in (400, 413)


def test_two_ways_to_say_the_length(stage: Stage) -> None:
    with stage.mallory.raw() as tls:
        tls.sendall(
            head(CONTRIBUTE.at(run=stage.run, round=0), 5, "Transfer-Encoding: chunked") + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        assert answered(tls).status == 400
        assert tls.recv(65536) == b"", "nothing after it is taken for a request"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_is_none(stage: Stage, name: str) -> None:
    path, body, code, status = MESSAGES[name]
    check(stage, lambda: stage.mallory.post(path, body), code, status)


def test_a_message_of_two_megabytes(stage: Stage) -> None:
    def attempt() -> Answer:
        with stage.mallory.raw() as tls:
            tls.sendall(head(WORK.path, 2 << 20, method="POST"))
            return answered(tls)

    check(stage, attempt, 504, 413)


@pytest.mark.parametrize(
    "path", ["/", "/v1/admin", "/v1/tokens", "/v1/studies", "/v1/status", "/v1/blobs/../../coordinator.sqlite"]
)
def test_what_is_not_offered(stage: Stage, path: str) -> None:
    check(stage, lambda: stage.mallory.send("GET", path, {}), 500, 404)


def test_measures_before_it_is_time(stage: Stage) -> None:
    """They once counted as an answer of the open round, which could then never close."""
    told = Measures(run=stage.run, round=0, splits={"test": Measured(examples=9, sums={})})
    check(stage, lambda: stage.mallory.post(MEASURES.path, told), 406, 404)


@pytest.mark.parametrize(
    "head",
    [
        "",
        SECRET,
        f"0:{'a' * 64}:{'b' * 64}:{'c' * 128}",
        f"7:{'a' * 64}:{'b' * 64}:{'c' * 128}",
        f"{'9' * 16}:{'a' * 64}:{'b' * 64}:{'c' * 128}",
        f"-1:{'a' * 64}:{'b' * 64}:{'c' * 128}",
        f"7:{'a' * 64}:{'b' * 64}",
    ],
)
def test_a_head_of_a_ledger_that_is_none(stage: Stage, head: str) -> None:
    """Malformed, or not signed by the key that it names."""
    body = encode(WorkRequest())
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), LEDGER_HEADER: head}
    check(stage, lambda: stage.mallory.send("POST", WORK.path, headers, body), 500, 400)
    told = {node.name: node for node in stage.status().nodes}["mallory"]
    assert (told.ledger_lines, told.ledger_fault) == (0, "")


def test_a_node_that_was_not_asked(stage: Stage) -> None:
    work = stage.mallory.work().work
    assert work is not None
    bob = stage.bob
    check(stage, lambda: bob.contribute(stage.run, 0, packed(good(stage.spec))), 406, 404)
    check(stage, lambda: bob.send("GET", BLOB.at(sha256=work.plan.sha256), {}), 406, 404)
    check(stage, lambda: bob.send("GET", BLOB.at(sha256=work.shared.sha256), {}), 406, 404)
    check(stage, lambda: bob.post(DECLINED.path, Declined(run=stage.run, round=0, code=1, message="")), 406, 404)
    told = Measures(run=stage.run, round=0, splits={})
    check(stage, lambda: bob.post(MEASURES.path, told), 406, 404)
    found = bob.post(WORK.path, WorkRequest(pending=[{"run": stage.run, "round": 0}]))  # type: ignore[list-item]
    assert found.code == 0 and b'"work":null' in found.body


@pytest.mark.parametrize(
    "name", ["0" * 64, "%2e%2e%2fcoordinator.sqlite", SECRET.replace(" ", "%20"), "A" * 64, "0" * 64 + "%0A"]
)
def test_a_blob_that_is_none_of_its_own(stage: Stage, name: str) -> None:
    check(stage, lambda: stage.mallory.send("GET", f"/v1/blobs/{name}", {}), 406, 404)


def roots(stage: Stage) -> str:
    return (stage.folder / "mallory" / "identity" / "roots.pem").read_text(encoding="ascii")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.roles], ids=lambda r: r.path)
def test_nothing_is_told_without_a_certificate(stage: Stage, route: object) -> None:
    stranger = Peer(stage.federation, "stranger", None, roots(stage))
    path = route.path.format(sha256="0" * 64, run=stage.run, round=0)  # type: ignore[attr-defined]
    check(stage, lambda: stranger.send(route.method, path, {"Content-Length": "0"}), 402, 401)  # type: ignore[attr-defined]
    stranger.close()


def certified(authority: Authority, stage: Stage, tmp_path: Path, role: str) -> credentials.Credentials:
    key = tmp_path / "own.key"
    csr = credentials.request("new-key", key, "mallory")
    issued = authority.sign(csr, role=role, name="mallory", now=time.time(), lifetime_s=3600.0)  # type: ignore[arg-type]
    pair = tmp_path / "own.pem"
    pair.write_text(key.read_text() + issued.chain)
    base = credentials.load(stage.folder / "mallory")
    return credentials.Credentials(
        membership=base.membership, pair=pair, roots=base.roots, not_before=issued.not_before, not_after=issued.not_after
    )


def test_a_certificate_of_another_authority(stage: Stage, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "a", federation="test", now=time.time(), ca_dir=tmp_path / "ca")
    forged = Peer(stage.federation, "mallory", certified(other, stage, tmp_path, "node"))
    with pytest.raises(OSError):  # TLS refuses it before a word is said
        forged.work()


@pytest.mark.parametrize("role", ["researcher", "operator"])
def test_a_certificate_of_another_role(stage: Stage, tmp_path: Path, role: str) -> None:
    own = stage.folder / "coordinator"
    authority = Authority.open(own / "authority", federation="test", now=time.time(), ca_dir=own / "ca")
    peer = Peer(stage.federation, "mallory", certified(authority, stage, tmp_path, role))
    check(stage, lambda: peer.post(WORK.path, WorkRequest()), 403, 403)
    peer.close()


# Tokens. An address may fail ten times.


def token(stage: Stage, **fields: object) -> JoinToken:
    return JoinToken.parse(stage.federation.admin.post("/v1/tokens", TokenRequest(**fields), TokenMade).token)  # type: ignore[arg-type]


def enroll(stage: Stage, made: JoinToken, csr: str, **changed: str) -> Answer:
    fields = {"federation": "test", "node": "trudy", "token_id": made.id, "secret": made.secret, "csr": csr} | changed
    stranger = Peer(stage.federation, "stranger", None, roots(stage))
    found = stranger.post(ENROLL.path, text(**fields))
    stranger.close()
    return found


def csr_for(tmp_path: Path, name: str) -> str:
    return credentials.request("new-key", tmp_path / f"{len(list(tmp_path.iterdir()))}.key", name)


def test_a_token_that_does_not_count(stage: Stage, tmp_path: Path) -> None:
    csr = csr_for(tmp_path, "trudy")
    made = token(stage, node="trudy")
    check(stage, lambda: enroll(stage, made, csr, federation="other"), 401, 403)
    check(stage, lambda: enroll(stage, made, csr, node="alice"), 401, 403)
    check(stage, lambda: enroll(stage, made, csr, secret="x" * 32), 401, 403)
    check(stage, lambda: enroll(stage, token(stage, ttl_s=1e-6), csr), 401, 403)
    check(stage, lambda: enroll(stage, made, SECRET), 405, 400)
    check(stage, lambda: enroll(stage, made, csr, node="trudy\n"), 500, 400)
    check(stage, lambda: enroll(stage, made, csr, federation="test\n"), 500, 400)
    check(stage, lambda: enroll(stage, made, csr, token_id=made.id + "\n"), 500, 400)
    assert enroll(stage, made, csr).code == 0, "none of that has used it up"
    assert enroll(stage, made, csr).code == 0, "the same request, repeated after a lost answer"
    check(stage, lambda: enroll(stage, made, csr_for(tmp_path, "trudy")), 401, 403)


def test_who_a_node_is_follows_from_its_token(stage: Stage, tmp_path: Path) -> None:
    found = enroll(stage, token(stage, node="trent"), csr_for(tmp_path, "cleveland"), node="trent")
    pem = spki.certificates(json.loads(found.body)["chain"])[0]
    (tmp_path / "trent.pem").write_text(pem)
    told = ssl._ssl._test_decode_cert(str(tmp_path / "trent.pem"))  # type: ignore[attr-defined]
    assert told["subjectAltName"] == (("URI", "spiffe://test/node/trent"),)


def test_a_wrong_pin_keeps_the_secret_at_home(stage: Stage, tmp_path: Path) -> None:
    made = token(stage, node="walter")
    wrong = JoinToken(pin="0" * 64, id=made.id, secret=made.secret)
    with pytest.raises(PinMismatch):
        join(tmp_path, wrong, url=stage.federation.url, node="walter", network=Network())
    assert join(tmp_path, made, url=stage.federation.url, node="walter", network=Network()).membership.node == "walter"


def test_the_round_ends_as_if_nothing_had_happened(stage: Stage) -> None:
    """Replayed, a contribution counts once; another one is refused; and the state is bit-equal to the undisturbed one."""
    federation, mallory, run = stage.federation, stage.mallory, stage.run
    body = packed(good(stage.spec))
    for _ in range(3):
        found = mallory.contribute(run, 0, body)
        assert found.code == 0 and b'"received":true' in found.body
    check(stage, lambda: mallory.contribute(run, 0, packed(good(stage.spec, 0.5))), 408, 409)
    assert stage.eve.contribute(run, 0, body).code == 0
    digest = federation.run(stage.plan)  # it is there already
    end(federation, digest, "disturbed", mallory, stage.eve)
    check(stage, lambda: mallory.contribute(run, 0, body), 406, 404)
    results = federation.admin.get(f"/v1/studies/{digest}", Results)
    assert results.rounds[0].heard == sorted([*NODES, "eve", "mallory"])
    state = server_state(federation, run)
    assert all(state[key].equal(value) for key, value in stage.undisturbed.items())
