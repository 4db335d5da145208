"""The deny list: who is on it, and that a slip of the pen does not get there."""

from __future__ import annotations

import msgspec
import pytest

from freehold.coordinator.admission import names_of
from freehold.errors import Denied, UnknownName
from freehold.wire.server import Identity
from tests.unit.enrolment.world import World, csr, identity_of


def test_a_name_that_nobody_has_is_refused_with_the_nearest_one(world: World) -> None:
    world.joined()
    with pytest.raises(UnknownName, match=r"Nobody here is node/alcie.*Did you mean 'node/alice'.*--even-unknown"):
        world.enrolment.deny("node/alcie", by="root")
    assert world.enrolment.denials() == [] and world.log()[-1][0] != "deny"
    world.enrolment.deny("node/alcie", by="root", even_unknown=True)
    assert [each.what for each in world.enrolment.denials()] == ["node/alcie"]


def test_in_a_large_federation_not_everybody_is_named(world: World) -> None:
    for index in range(12):
        world.enrolment.create_token(creator="root", node=f"hospital-{index}")
    with pytest.raises(UnknownName) as refused:
        world.enrolment.deny("node/xyz", by="root")
    assert "hospital" not in refused.value.hint and "freehold node list" in refused.value.hint


def test_who_is_named_by_a_token_and_who_has_left_can_be_denied(world: World) -> None:
    world.enrolment.create_token(creator="root", node="bob")
    world.enrolment.create_token(creator="root", role="researcher", node="carol")
    world.enrolment.leave(world.joined())
    for who in ("node/bob", "researcher/carol", "node/alice"):
        world.enrolment.deny(who, by="root")
    with pytest.raises(UnknownName):
        world.enrolment.deny("operator/carol", by="root")


def test_the_list_says_since_when_why_and_whose_a_serial_is(world: World) -> None:
    peer = world.joined()
    world.enrolment.deny(peer.serial, by="root", reason="stolen")
    world.clock.now += 1.0
    world.enrolment.deny("node/alice", by="root")
    first, second = world.enrolment.denials()
    assert (first.what, first.time, first.reason, first.identity) == (
        peer.serial, world.clock() - 1.0, "stolen", "node/alice",
    )  # fmt: skip
    assert (second.what, second.reason, second.identity) == ("node/alice", "", None)


def test_a_serial_that_no_certificate_has_is_refused(world: World) -> None:
    peer = world.joined()
    with pytest.raises(UnknownName, match="No certificate here has the serial"):
        world.enrolment.deny("AB" + peer.serial[2:], by="root")


def test_a_serial_of_another_ca_is_known_once_it_was_seen(world: World) -> None:
    stranger = msgspec.structs.replace(world.joined("bob"), name="zed", serial="0ABC")
    with pytest.raises(UnknownName):
        world.enrolment.deny("0ABC", by="root")
    world.enrolment.notice(stranger, address="192.0.2.7")
    world.enrolment.deny("0ABC", by="root")
    world.enrolment.deny("node/zed", by="root")


@pytest.mark.parametrize("typed", ["0ABC", "ABC"])
def test_a_serial_is_denied_with_and_without_its_first_zero(world: World, typed: str) -> None:
    issued = world.enrolment.certify(csr(), role="operator", name="olga", by="root")
    peer: Identity = msgspec.structs.replace(identity_of(issued.chain), serial="0ABC")
    world.enrolment.deny(typed, by="root", even_unknown=True)
    assert typed in names_of(peer) and world.enrolment.is_denied(peer)
    with pytest.raises(Denied):
        world.enrolment.admit(peer, roles=frozenset({"operator"}))
