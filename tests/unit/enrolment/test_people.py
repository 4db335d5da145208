"""Operators and researchers: tokens for them, what they get, and what becomes of what they had."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from freehold.cli.login import current, held, remote
from freehold.coordinator.certificates import DAY_S
from freehold.errors import CertificateRefused, CertificateUnfit, Denied, NodeError, TokenRefused, UsageError
from freehold.node import credentials
from freehold.node.credentials import Membership, folder_of
from freehold.wire import spki
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Certificate, LoginRequest, Role
from freehold.wire.server import Identity
from tests.unit.enrolment.world import ADDRESS, FEDERATION, World, csr, peer_of, pem_of


def token_for(world: World, role: Role = "researcher", name: str = "carol") -> JoinToken:
    return world.enrolment.create_token(creator="operator", role=role, node=name)


def login(world: World, token: JoinToken, request: str | None = None) -> Certificate:
    message = LoginRequest(federation=FEDERATION, token_id=token.id, secret=token.secret, csr=request or csr())
    return world.enrolment.login(message, address=ADDRESS)


def shown(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(spki.certificates(certificate.chain)[0])


@pytest.mark.parametrize("role", ["operator", "researcher"])
def test_the_token_says_who_one_becomes(world: World, role: Role) -> None:
    made = login(world, token_for(world, role))
    peer = peer_of(made)
    assert (made.role, made.node, peer.role, peer.name) == (role, "carol", role, "carol")
    assert made.not_after == pytest.approx(world.clock() + 7 * DAY_S, abs=2)
    world.enrolment.admit_person(peer, shown=shown(made))
    assert world.log()[-2:] == [("token", f"{role}/carol", 0), ("login", f"{role}/carol", 0)]
    assert not world.enrolment.nodes(), "people are no nodes"


def test_a_person_is_no_node_and_a_node_no_person(world: World) -> None:
    person = login(world, token_for(world))
    with pytest.raises(CertificateRefused, match="researcher's"):
        world.enrolment.admit(peer_of(person))
    token = world.enrolment.create_token(creator="root", node="alice")
    node = world.enroll(token, csr())
    with pytest.raises(CertificateRefused, match="node's") as caught:
        world.enrolment.admit_person(peer_of(node), shown=shown(node))
    assert "freehold login" in caught.value.hint


def test_a_token_for_one_does_not_do_for_the_other(world: World) -> None:
    with pytest.raises(TokenRefused, match="for a researcher") as caught:
        world.enroll(token_for(world), csr(), "carol")
    assert "freehold login" in caught.value.hint
    with pytest.raises(TokenRefused, match="for a node") as caught:
        login(world, world.enrolment.create_token(creator="root", node="alice"))
    assert "freehold node start" in caught.value.hint
    assert [entry[2] for entry in world.log() if entry[0] in ("enroll", "login")] == [401, 401]


@pytest.mark.parametrize("options", [{"node": None}, {"node": "carol", "uses": 2}])
def test_a_persons_token_is_for_one_name_and_one_use(world: World, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="one name, and one use"):
        world.enrolment.create_token(creator="root", role="operator", **options)  # type: ignore[arg-type]


def test_a_lost_answer_is_given_again_and_a_second_key_is_not(world: World) -> None:
    token, request = token_for(world), csr()
    assert login(world, token, request) == login(world, token, request)
    with pytest.raises(TokenRefused, match="used"):
        login(world, token)


def test_another_login_under_the_same_name_ends_the_first(world: World) -> None:
    first = login(world, token_for(world))
    operator = login(world, token_for(world, "operator"))
    second = login(world, token_for(world))
    with pytest.raises(Denied):
        world.enrolment.admit_person(peer_of(first), shown=shown(first))
    with pytest.raises(Denied):
        world.renew(peer_of(first), csr())
    world.enrolment.admit_person(peer_of(second), shown=shown(second))
    world.enrolment.admit_person(peer_of(operator), shown=shown(operator))  # another role is another identity


def test_a_renewal_has_the_same_role_and_the_old_one_stays(world: World) -> None:
    first = login(world, token_for(world))
    second = world.renew(peer_of(first), csr())
    assert (second.role, second.node) == ("researcher", "carol")
    for each in (first, second):
        world.enrolment.admit_person(peer_of(each), shown=shown(each))
    assert world.log()[-1] == ("renew", "researcher/carol", 0)


def test_a_denied_person_is_out_under_every_certificate_and_cannot_log_in_again(world: World) -> None:
    first = login(world, token_for(world))
    world.enrolment.deny("researcher/carol", by="operator/olga")
    with pytest.raises(Denied):
        world.enrolment.admit_person(peer_of(first), shown=shown(first))
    with pytest.raises(Denied):
        world.renew(peer_of(first), csr())
    with pytest.raises(Denied):
        login(world, token_for(world))
    world.enrolment.allow("researcher/carol", by="operator/olga")
    world.enrolment.admit_person(peer_of(first), shown=shown(first))


def test_a_certificate_that_was_not_given_out_here_does_not_administer(world: World) -> None:
    """Signed by the same issuer, as one with the issuer's key could; but nobody has entered it."""
    issued = world.authority.sign(csr(), role="operator", name="olga", now=world.clock())
    forged = Certificate(federation=FEDERATION, node="olga", chain=issued.chain, roots="", not_after=0.0)
    with pytest.raises(CertificateRefused, match="not given out by this coordinator"):
        world.enrolment.admit_person(peer_of(forged), shown=shown(forged))
    with pytest.raises(CertificateRefused, match="not enrolled"):
        world.renew(peer_of(forged), csr())
    # Not even with the serial of one that was.
    real = login(world, token_for(world, "operator", "olga"))
    liar = Identity(**{**_fields(peer_of(forged)), "serial": peer_of(real).serial})
    with pytest.raises(CertificateRefused, match="not given out by this coordinator"):
        world.enrolment.admit_person(liar, shown=shown(forged))
    with pytest.raises(CertificateRefused, match="not enrolled"):
        world.renew(liar, csr(), shown=shown(forged))


def test_a_serial_that_another_ca_has_chosen_ends_nobody_elses_certificate(world: World) -> None:
    carol = login(world, token_for(world, "operator"))
    stranger = Identity(**{**_fields(world.joined("mallory")), "serial": peer_of(carol).serial})
    world.enrolment.leave(stranger)
    world.enrolment.admit_person(peer_of(carol), shown=shown(carol))
    with pytest.raises(Denied):
        world.enrolment.admit(stranger)


def test_an_answer_for_another_role_is_not_installed(world: World, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "some.key").write_text(pem_of(key))
    answer = login(world, token_for(world), csr(key))
    with pytest.raises(NodeError, match="researcher 'carol'"):
        credentials.install(
            tmp_path, tmp_path / "some.key", answer, Membership(federation=FEDERATION, node="carol", url="", role="operator")
        )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_persons_identity_is_theirs_alone(world: World, tmp_path: Path, mode: int) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, key = tmp_path / "carol", ec.generate_private_key(ec.SECP256R1())
    with held(folder):
        (folder_of(folder) / "joining-0.key").write_text(pem_of(key))
        answer = login(world, token_for(world), csr(key))
        member = Membership(federation=FEDERATION, node="carol", url="https://localhost", role="researcher")
        credentials.install(folder, folder_of(folder) / "joining-0.key", answer, member)
    found = current(folder)
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"lock", "current.pem", "roots.pem", "federation.json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    assert {path.stat().st_mode & 0o777 for path in (folder, folder_of(folder))} == {0o700}
    found.pair.chmod(mode)
    with pytest.raises(CertificateUnfit, match=f"open to others: its mode is {mode:04o}") as refused:
        current(folder)
    assert "chmod 600" in refused.value.hint
    with pytest.raises(CertificateUnfit):
        remote("https://localhost", folder)


def _fields(peer: Identity) -> dict[str, object]:
    return {name: getattr(peer, name) for name in peer.__struct_fields__}
