"""The furthest head of each ledger is kept, whatever is shown afterwards, and the operator sees who went back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from freehold.coordinator.witness import ADVANCES, FAULTS
from freehold.errors import WireError
from freehold.node.lines import Head, Key
from freehold.wire.messages import LedgerHead
from tests.unit.node.witnessing import NOW, Coordinator, coordinator


@pytest.fixture
def court(tmp_path: Path) -> Iterator[Coordinator]:
    with coordinator(tmp_path / "coordinator") as found:
        yield found


@pytest.fixture
def key() -> Key:
    return Key(Ed25519PrivateKey.generate())


def head(key: Key, n: int, letter: str = "a") -> LedgerHead:
    return key.show(Head(n, letter * 64))


def test_the_furthest_head_is_kept_and_who_shows_an_older_one_is_told_of_it(court: Coordinator, key: Key) -> None:
    assert court.latest("alice").head is None
    for n in (1, 7):
        assert court.shown("alice", head(key, n)).head == head(key, n)
        assert court.latest("alice").head == head(key, n)
    for shown, why in ((head(key, 5), "went back from line 7 to line 5"), (head(key, 7, "b"), "is not the one that was known")):
        assert court.shown("alice", shown).head == head(key, 7)
        assert why in court.fault("alice")
        event = court.events.pop()
        assert (event.name, event.fields["node"], event.fields["known"]) == ("ledger.amiss", "alice", 7)
    assert court.shown("alice", head(key, 7)).head == head(key, 7)
    assert court.fault("alice") == "" and court.events == [], "it was restored"
    assert court.shown("alice", head(key, 9)).head == head(key, 9)


def test_another_ledger_counts_only_once_the_node_has_joined_anew(court: Coordinator, key: Key) -> None:
    court.shown("alice", head(key, 7))
    other = Key(Ed25519PrivateKey.generate())
    assert court.shown("alice", head(other, 100)).head == head(key, 7)
    assert "another ledger" in court.fault("alice")
    court.now = NOW + 60
    court.enroll("alice")
    assert court.latest("alice").head is None
    assert court.shown("alice", head(other, 2)).head == head(other, 2)
    assert court.fault("alice") == ""


def test_nodes_are_told_apart_and_a_restart_forgets_nothing(tmp_path: Path, key: Key) -> None:
    with coordinator(tmp_path) as before:
        before.enroll("bob")
        before.shown("alice", head(key, 7))
        before.shown("bob", head(key, 3))
        before.shown("alice", head(key, 2))
    with coordinator(tmp_path) as after:
        assert (after.latest("alice").head, after.latest("bob").head) == (head(key, 7), head(key, 3))
        assert "went back" in after.fault("alice") and after.fault("bob") == ""


def test_a_head_that_its_key_did_not_sign_is_refused(court: Coordinator, key: Key) -> None:
    good = head(key, 7)
    changes: list[dict[str, object]] = [{"n": 8}, {"hash": "b" * 64}, {"key": "c" * 64}, {"signature": "0" * 128}]
    for change in changes:
        with pytest.raises(WireError, match="not signed"):
            court.shown("alice", msgspec.structs.replace(good, **change))
    assert court.latest("alice").head is None


def test_a_faulty_head_with_each_request_does_not_cost_a_write_each(
    court: Coordinator, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, write = 0, court.store.write

    def counted(*given: Any) -> Any:
        nonlocal writes
        writes += 1
        return write(*given)

    court.shown("alice", head(key, 1000))
    monkeypatch.setattr(court.store, "write", counted)
    for n in range(1, 51):
        assert court.shown("alice", head(key, n)).head == head(key, 1000)
        assert court.shown("alice", head(key, 1000)).head == head(key, 1000)
    assert writes == FAULTS.most and len(court.events) <= FAULTS.most
    assert "went back" in court.fault("alice")
    court.now += FAULTS.every_s
    court.shown("alice", head(key, 3))
    assert writes == FAULTS.most + 1 and "line 3" in court.fault("alice")
    court.shown("bob", head(key, 1))
    assert writes == FAULTS.most + 2, "each node has its own"
    for n in range(1001, 1001 + 2 * ADVANCES.most):
        court.shown("alice", head(key, n))
    assert writes == FAULTS.most + 2 + ADVANCES.most
    court.now += ADVANCES.every_s
    assert court.shown("alice", head(key, 5000)).head == head(key, 5000)
