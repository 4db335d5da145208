from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from freehold.coordinator import enrolment_tables
from freehold.coordinator.attempts import Attempts
from freehold.coordinator.certificates import DAY_S
from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.schema import metadata
from freehold.errors import CertificateRefused, CoordinatorError, CsrRefused, Denied, TokenRefused, UsageError
from freehold.wire import jointoken
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import EnrollRequest
from tests.unit.enrolment.world import ADDRESS, FEDERATION, World, csr, identity_of, peer_of

WRONG = jointoken.encode(b"planted-wrong-24-bytes!!")


def token_of(world: World, **options: object) -> JoinToken:
    return world.enrolment.create_token(creator="root", **options)  # type: ignore[arg-type]


def test_a_token_makes_a_node_once(world: World) -> None:
    token = token_of(world)
    peer = peer_of(world.enroll(token, csr(name="EVIL")))
    assert (peer.role, peer.name) == ("node", "alice")
    world.enrolment.admit(peer)
    with pytest.raises(TokenRefused, match="has been used"):
        world.enroll(token, csr(), "bob")
    assert [node.name for node in world.enrolment.nodes()] == ["alice"]
    assert world.log() == [("token", None, 0), ("enroll", "alice", 0), ("enroll", "bob", 401)]


def test_a_request_whose_answer_was_lost_gets_the_same_answer_and_costs_no_second_use(world: World) -> None:
    token, request = token_of(world, uses=2), csr()
    assert world.enroll(token, request) == world.enroll(token, request)
    world.enroll(token, csr(), "bob")
    with pytest.raises(TokenRefused):
        world.enroll(token, csr(), "carol")


def test_of_twenty_at_once_one_wins(world: World) -> None:
    token = token_of(world)
    world.enrolment.attempts = Attempts(world.clock, burst=100)
    requests = [csr() for _ in range(20)]
    outcomes: list[str] = []
    start = threading.Barrier(20)

    def one(index: int) -> None:
        start.wait()
        try:
            world.enroll(token, requests[index], f"node-{index}")
            outcomes.append("enrolled")
        except TokenRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=one, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"enrolled": 1, "refused": 19}
    assert len(world.enrolment.nodes()) == 1
    assert Counter(world.log()[1:][i][2] for i in range(20)) == {0: 1, 401: 19}


def test_one_name_is_given_once_however_many_tokens_there_are(world: World) -> None:
    tokens = [token_of(world) for _ in range(6)]
    outcomes: list[bool] = []
    start = threading.Barrier(6)

    def one(token: JoinToken, request: str) -> None:
        start.wait()
        try:
            world.enroll(token, request)
            outcomes.append(True)
        except TokenRefused:
            outcomes.append(False)

    threads = [threading.Thread(target=one, args=(token, csr())) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcomes) == 1


def expired(world: World) -> JoinToken:
    token = token_of(world, ttl_s=60)
    world.clock.now += 60
    return token


def revoked(world: World) -> JoinToken:
    token = token_of(world)
    world.enrolment.revoke_token(token.id, by="root")
    return token


REFUSED: dict[str, tuple[Callable[[World], JoinToken], dict[str, str], str]] = {
    "expired": (expired, {}, "has expired"),
    "revoked": (revoked, {}, "revoked"),
    "another node": (lambda world: token_of(world, node="bob"), {}, "not for node 'alice'"),
    "another federation": (token_of, {"federation": "others"}, "not for federation"),
    "wrong secret": (token_of, {"secret": WRONG}, "not accepted"),
    "unknown": (lambda world: replace(token_of(world), id="00000000"), {}, "not accepted"),
}


@pytest.mark.parametrize(("make", "changed", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_token_is_refused(world: World, make: Callable[[World], JoinToken], changed: dict[str, str], reason: str) -> None:
    with pytest.raises(TokenRefused, match=reason):
        world.enroll(make(world), csr(), **changed)
    assert world.enrolment.nodes() == []
    assert world.log()[-1] == ("enroll", "alice", 401)


@pytest.mark.parametrize("make", [expired, revoked, token_of], ids=["expired", "revoked", "good"])
def test_who_has_not_the_secret_learns_nothing(world: World, make: Callable[[World], JoinToken]) -> None:
    told = set()
    for token in (make(world), replace(make(world), id="00000000")):
        with pytest.raises(TokenRefused) as caught:
            world.enroll(token, csr(), secret=WRONG)
        told.add(str(caught.value))
    assert len(told) == 1


def test_a_refused_attempt_leaves_the_token_as_it_was(world: World) -> None:
    token = token_of(world)
    for request, secret in (
        (csr(), WRONG),
        ("nonsense", token.secret),
        (csr(rsa.generate_private_key(65537, 1024)), token.secret),
    ):
        with pytest.raises(CoordinatorError):
            world.enroll(token, request, secret=secret)
    world.enroll(token, csr())


def test_a_name_that_is_taken_needs_a_token_bound_to_it_and_then_the_old_certificate_is_over(world: World) -> None:
    old = world.joined()
    with pytest.raises(TokenRefused, match="enrolled already"):
        world.enroll(token_of(world), csr())
    new = world.joined()
    world.enrolment.admit(new)
    with pytest.raises(Denied):
        world.enrolment.admit(old)


def test_a_token_is_shown_once_and_not_stored(world: World) -> None:
    token = token_of(world, node="alice")
    world.enroll(token, csr())
    (record,) = world.enrolment.tokens()
    assert (record.id, record.node, record.uses, record.creator) == (token.id, "alice", 0, "root")
    with world.engine.connect() as connection:
        stored = [str(row) for table in metadata.sorted_tables for row in connection.execute(sa.select(table))]
    assert token.secret not in "".join(stored) + repr(record) + repr(token)
    assert token.secret.encode() not in b"".join(path.read_bytes() for path in world.folder.glob("store.sqlite*"))


def test_no_error_and_no_message_shows_a_secret(world: World) -> None:
    request = EnrollRequest(federation=FEDERATION, node="alice", token_id="00000000", secret=WRONG, csr="nonsense")
    assert WRONG not in repr(request)
    with pytest.raises(TokenRefused) as caught:
        world.enrolment.enroll(request, address=ADDRESS)
    assert WRONG not in repr(caught.value) + str(caught.value)


def test_renewal_keeps_the_name_whatever_the_request_says(world: World) -> None:
    old = world.joined()
    new = peer_of(world.renew(old, csr(name="EVIL")))
    assert (new.role, new.name) == ("node", "alice") and new.serial != old.serial
    for peer in (old, new):
        world.enrolment.admit(peer)


def test_a_key_is_certified_once(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    peer = peer_of(world.enroll(token_of(world), csr(key)))
    for who in (peer, peer_of(world.renew(peer, csr()))):  # neither as the last key nor as an earlier one
        with pytest.raises(CsrRefused, match="used before"):
            world.renew(who, csr(key))
    with pytest.raises(CsrRefused, match="used before"):
        world.enroll(token_of(world), csr(key), "bob")
    assert [node.name for node in world.enrolment.nodes()] == ["alice"]


def test_an_expired_certificate_is_not_renewed_and_the_node_joins_again(world: World) -> None:
    peer = world.joined()
    world.clock.now += DAY_S
    for refused in (lambda: world.renew(peer, csr()), lambda: world.enrolment.admit(peer)):
        with pytest.raises(CertificateRefused, match="expired"):
            refused()
    world.enrolment.admit(world.joined())


@pytest.mark.parametrize("by_serial", [True, False])
def test_a_denied_node_is_neither_admitted_nor_renewed_until_it_is_allowed(world: World, by_serial: bool) -> None:
    peer = world.joined()
    what = peer.serial if by_serial else "node/alice"
    world.enrolment.deny(what, by="root", reason="stolen")
    world.enrolment.deny(what, by="root", reason="stolen")
    for refused in (lambda: world.renew(peer, csr()), lambda: world.enrolment.admit(peer)):
        with pytest.raises(Denied):
            refused()
    world.enrolment.allow(what, by="root")
    world.renew(peer, csr())
    with pytest.raises(UsageError):
        world.enrolment.allow(what, by="root")


@pytest.mark.parametrize("what", ["alice", "nodes/alice", "node/", "node/alice\n", ""])
def test_what_nobody_can_be_is_not_denied_in_vain(world: World, what: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        world.enrolment.deny(what, by="root")


def test_a_denied_name_enrolls_with_no_token(world: World) -> None:
    world.enrolment.deny("node/alice", by="root", even_unknown=True)
    with pytest.raises(Denied):
        world.enroll(token_of(world, node="alice"), csr())


def test_a_node_that_left_is_out_and_its_name_is_free(world: World) -> None:
    first = world.joined()
    second = peer_of(world.renew(first, csr()))
    world.enrolment.leave(second)
    world.enrolment.leave(second)
    for peer in (first, second):
        with pytest.raises(Denied):
            world.enrolment.admit(peer)
        with pytest.raises(Denied):
            world.renew(peer, csr())
    assert world.enrolment.nodes()[0].left == world.clock()
    world.enroll(token_of(world), csr())
    assert world.enrolment.nodes()[0].left is None


def test_an_operator_is_certified_as_one_and_does_not_pass_for_a_node(world: World) -> None:
    issued = world.enrolment.certify(csr(), role="operator", name="olga", by="root")
    peer = identity_of(issued.chain)
    world.enrolment.admit(peer, roles=frozenset({"operator"}))
    with pytest.raises(CertificateRefused):
        world.enrolment.admit(peer)
    assert peer_of(world.renew(peer, csr())).role == "operator"
    world.enrolment.deny("operator/olga", by="root")
    with pytest.raises(Denied):
        world.enrolment.admit(peer, roles=frozenset({"operator"}))
    with pytest.raises(UsageError):
        world.enrolment.certify(csr(), role="node", name="alice", by="root")


def test_an_address_that_fails_too_often_waits_even_with_a_good_token(world: World) -> None:
    good = token_of(world)
    for _ in range(10):
        with pytest.raises(TokenRefused, match="not accepted"):
            world.enroll(good, csr(), secret=WRONG)
    entries = len(world.log())
    with pytest.raises(TokenRefused, match="Too many attempts"):
        world.enroll(good, csr())
    assert len(world.log()) == entries  # nobody fills the log
    world.clock.now += 30
    world.enroll(good, csr())


@pytest.mark.parametrize("options", [{"ttl_s": 0}, {"ttl_s": 31 * DAY_S}, {"uses": 0}])
def test_a_token_has_an_end_and_a_use(world: World, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        token_of(world, **options)


def test_a_token_is_for_a_name_and_an_unknown_one_is_not_revoked(world: World) -> None:
    with pytest.raises(CoordinatorError):
        token_of(world, node="Not A Name")
    with pytest.raises(UsageError):
        world.enrolment.revoke_token("00000000", by="root")


def test_a_number_that_is_given_is_not_given_again(world: World) -> None:
    numbers = iter([b"\0\0\0\1", b"\0\0\0\1", b"\0\0\0\2"])
    world.enrolment.random = lambda length: next(numbers) if length == 4 else bytes(length)
    assert [token_of(world).id, token_of(world).id] == ["00000001", "00000002"]


def test_a_database_in_memory_will_do(world: World) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    metadata.create_all(engine)
    transaction, reading = enrolment_tables.transactions(engine), enrolment_tables.readings(engine)
    enrolment = Enrolment(authority=world.authority, transaction=transaction, reading=reading, clock=world.clock)
    token = enrolment.create_token(creator="root")
    request = EnrollRequest(federation=FEDERATION, node="alice", token_id=token.id, secret=token.secret, csr=csr())
    enrolment.admit(peer_of(enrolment.enroll(request, address=ADDRESS)))
    engine.dispose()


def test_what_was_enrolled_is_there_after_a_restart(world: World, tmp_path: Path) -> None:
    peer = world.joined()
    again = sa.create_engine(f"sqlite:///{world.folder / 'store.sqlite'}")
    reading = enrolment_tables.readings(again)
    with reading() as records:
        assert records.serials("node", "alice", world.clock()) == [peer.serial]
    again.dispose()
