"""Administration from elsewhere: operators and researchers with certificates, on the port of the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from freehold.cli.login import current, remote, sign_in
from freehold.errors import CertificateRefused, Denied, NotAllowed, NotJoined, PinMismatch, StudyRefused, UsageError
from freehold.node import credentials
from freehold.node.join import Network
from freehold.plan import dumps
from freehold.wire.admin import (
    Done,
    Results,
    Status,
    Studies,
    StudyRequest,
    StudyStarted,
    Subject,
    TokenMade,
    TokenRequest,
    Tokens,
)
from freehold.wire.adminroutes import ADMIN_ROUTES, RemoteAdmin
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Role, WorkRequest
from freehold.wire.routes import LEAVE, WORK
from tests.federation.harness import Federation, heart_plan
from tests.federation.peer import Peer, joined


@pytest.fixture
def bare(tmp_path: Path, fork: Path) -> Iterator[Federation]:
    """A coordinator without nodes, whose certificates for people are due for renewal at once."""
    found = Federation(tmp_path, [], fork=fork, settings={"person_life_s": 600.0})
    found.start()
    try:
        yield found
    finally:
        found.stop()


def signed_in(federation: Federation, role: Role, name: str) -> Path:
    """The folder of a person's identity, with a token from the socket."""
    folder = federation.folder / f"{role}-{name}"
    token = federation.admin.post("/v1/tokens", TokenRequest(role=role, node=name), TokenMade).token
    sign_in(folder, JoinToken.parse(token), url=federation.url, network=Network())
    return folder


def person(federation: Federation, role: Role, name: str) -> RemoteAdmin:
    return remote(federation.url, signed_in(federation, role, name))


def small(name: str) -> StudyRequest:
    return StudyRequest(plan=dumps(heart_plan("fedavg", name=name, rounds=1, nodes=1)))


def state_of(admin: RemoteAdmin, digest: str) -> tuple[str, str]:
    found = next(s for s in admin.get("/v1/studies", Studies).studies if s.digest == digest)
    return found.state, found.by


def test_a_researcher_runs_studies_of_their_own_and_an_operator_everything(bare: Federation) -> None:
    carol, dora = person(bare, "researcher", "carol"), person(bare, "researcher", "dora")
    olga = person(bare, "operator", "olga")
    first = carol.post("/v1/studies", small("first"), StudyStarted).digest
    second = dora.post("/v1/studies", small("second"), StudyStarted).digest
    here = bare.run(heart_plan("fedavg", name="third", rounds=1, nodes=1))
    assert carol.post("/v1/studies", small("second"), StudyStarted).digest == second
    assert [state_of(carol, each) for each in (first, second, here)] == [
        ("running", "researcher/carol"),
        ("running", "researcher/dora"),
        ("running", "operator"),
    ], "who starts it once more has not started it"
    assert dora.get(f"/v1/studies/{first[7:19]}", Results).rounds == []
    for other in (second, here):
        with pytest.raises(NotAllowed, match="started this study"):
            carol.post("/v1/studies/stop", Subject(name=other), Done)
    carol.post("/v1/studies/stop", Subject(name="first"), Done)
    assert state_of(dora, first) == ("stopped", "researcher/carol")
    bare.coordinator.stop()
    bare.start_coordinator()
    with pytest.raises(NotAllowed, match="researcher/dora started"):
        carol.post("/v1/studies/stop", Subject(name="second"), Done)
    olga.post("/v1/studies/stop", Subject(name="second"), Done)
    olga.post("/v1/studies/stop", Subject(name="third", reason="test"), Done)
    assert [state_of(olga, each)[0] for each in (first, second, here)] == ["stopped"] * 3
    with pytest.raises(NotAllowed, match="may not ask") as caught:
        carol.post("/v1/tokens", TokenRequest(node="alice"), TokenMade)
    assert caught.value.hint
    for path, message in (("/v1/deny", Subject(name="node/x")), ("/v1/allow", Subject(name="node/x"))):
        with pytest.raises(NotAllowed):
            carol.post(path, message, Done)
    with pytest.raises(NotAllowed):
        carol.get("/v1/tokens", Tokens)
    assert carol.get("/v1/status", Status).refused["420"] >= 5
    assert olga.post("/v1/tokens", TokenRequest(node="alice"), TokenMade).url == bare.url
    assert olga.get("/v1/tokens", Tokens).tokens[-1].creator == "operator/olga"
    with pytest.raises(UsageError, match="30 days"):  # a number that a node would not believe
        olga.post("/v1/tokens", TokenRequest(ttl_s=1e9), TokenMade)


def test_a_study_key_holds_for_researchers_too(tmp_path: Path, fork: Path) -> None:
    from freehold.signing import make_key

    make_key(tmp_path / "key", tmp_path / "key.pub")
    federation = Federation(tmp_path, [], fork=fork, settings={"study_keys": [str(tmp_path / "key.pub")]})
    federation.start()
    try:
        with pytest.raises(StudyRefused, match="not signed"):
            person(federation, "researcher", "carol").post("/v1/studies", small("first"), StudyStarted)
    finally:
        federation.stop()


def test_roles_do_not_mix(bare: Federation, tmp_path: Path) -> None:
    zed = joined(bare, "zed", tmp_path)
    for route in ADMIN_ROUTES:
        body = b"{}" if route.method == "POST" else b""
        path = route.path.replace("{study}", "x")
        answer = zed.send(route.method, path, {"Content-Length": str(len(body))}, body)
        assert (answer.status, answer.code) == (403, 403), route
        assert b"freehold login" in answer.body
    nobody = Peer(bare, "nobody", None, roots=(tmp_path / "zed" / "identity" / "roots.pem").read_text())
    assert nobody.send("GET", ADMIN_ROUTES[0].path, {}).code == 402
    for role in ("operator", "researcher"):
        olga = Peer(bare, "olga", credentials.load(signed_in(bare, role, "olga")))
        for path in (WORK.path, LEAVE.path, "/v1/measures", "/v1/declined"):
            answer = olga.post(path, WorkRequest())
            assert (answer.status, answer.code) == (403, 403), path
        assert olga.send("GET", f"/v1/blobs/{'0' * 64}", {}).code == 403
        assert olga.contribute(f"{'0' * 16}-0", 0, b"x").code == 403
        olga.close()
    zed.close(), nobody.close()


def test_a_denied_person_is_cut_off_at_once(bare: Federation) -> None:
    folder = signed_in(bare, "operator", "olga")
    olga, oscar = Peer(bare, "olga", credentials.load(folder)), person(bare, "operator", "oscar")
    assert olga.send("GET", "/v1/admin/status", {}).code == 0
    oscar.post("/v1/deny", Subject(name="operator/olga", reason="left the project"), Done)
    assert olga.is_cut()
    assert olga.send("GET", "/v1/admin/status", {}).code == 404
    with pytest.raises(Denied):
        remote(bare.url, folder).get("/v1/status", Status)
    oscar.post("/v1/allow", Subject(name="operator/olga"), Done)
    assert olga.send("GET", "/v1/admin/status", {}).code == 0
    olga.close()
    log = sa.create_engine(f"sqlite:///{bare.folder / 'coordinator' / 'coordinator.sqlite'}")
    with log.connect() as connection:
        told = connection.execute(sa.text('select event, name, "by", outcome from enrolment_log')).all()
    log.dispose()
    assert ("login", "operator/olga", None, 0) in told
    assert ("deny", "operator/olga", "operator/oscar", 0) in told
    assert ("allow", "operator/olga", "operator/oscar", 0) in told
    assert ("renew", "operator/olga", None, 404) in told or ("renew", "operator/oscar", None, 0) in told


def test_a_second_login_cuts_the_first(bare: Federation, tmp_path: Path) -> None:
    first = Peer(bare, "olga", credentials.load(signed_in(bare, "operator", "olga")))
    assert first.send("GET", "/v1/admin/status", {}).code == 0
    (bare.folder / "operator-olga").rename(tmp_path / "stolen")
    second = person(bare, "operator", "olga")
    assert first.is_cut()
    assert second.get("/v1/status", Status).federation == "test"
    first.close()


def test_a_certificate_is_renewed_when_it_is_used_and_a_lost_one_needs_a_token(bare: Federation, tmp_path: Path) -> None:
    folder = signed_in(bare, "researcher", "carol")
    before = (folder / "identity" / "current.pem").read_bytes()
    assert remote(bare.url, folder).get("/v1/status", Status).federation == "test"
    assert (folder / "identity" / "current.pem").read_bytes() != before
    assert current(folder).membership.role == "researcher"
    assert {path.stat().st_mode & 0o777 for path in (folder / "identity").iterdir()} == {0o600}
    with pytest.raises(NotJoined, match="no identity"):
        remote(bare.url, tmp_path / "nobody")


def test_nothing_is_sent_to_a_coordinator_that_the_pin_does_not_name(bare: Federation, tmp_path: Path) -> None:
    good = JoinToken.parse(bare.admin.post("/v1/tokens", TokenRequest(role="operator", node="olga"), TokenMade).token)
    wrong = JoinToken(pin="0" * 64, id=good.id, secret=good.secret)
    with pytest.raises(PinMismatch):
        sign_in(tmp_path / "olga", wrong, url=bare.url, network=Network())
    assert not (tmp_path / "olga").exists()
    sign_in(tmp_path / "olga", good, url=bare.url, network=Network())  # unused until now


def test_a_node_that_left_cannot_administer(bare: Federation, tmp_path: Path) -> None:
    with pytest.raises(CertificateRefused):
        zed = joined(bare, "zed", tmp_path)
        zed.close()
        remote(bare.url, tmp_path / "zed").get("/v1/status", Status)
