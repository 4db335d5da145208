"""Personal states in two phases: pending until the round counted."""

from __future__ import annotations

import torch

from freehold.core import Tree
from freehold.engines import PersonalStore

SHARED = {"w": torch.ones(2)}


def state(value: float) -> Tree:
    return {"v": torch.tensor([value])}


def store() -> PersonalStore:
    return PersonalStore(lambda shared: {"v": shared["w"][:1] * 7})


def test_reading_enrolls_a_newcomer_and_keeps_nothing() -> None:
    kept = store()
    assert kept.read("a", SHARED)["v"].tolist() == [7.0]
    assert kept.read("a", {"w": 2 * SHARED["w"]})["v"].tolist() == [14.0] and kept.committed() == {}


def test_what_is_staged_counts_once_it_is_settled() -> None:
    kept = store()
    kept.stage("a", state(1))
    assert kept.read("a", SHARED)["v"].tolist() == [7.0] and kept.committed() == {}
    kept.settle(counted=True)
    assert kept.read("a", SHARED)["v"].tolist() == [1.0] and set(kept.committed()) == {"a"}


def test_what_does_not_count_is_dropped_for_good() -> None:
    kept = store()
    kept.stage("a", state(1))
    kept.settle(counted=True)
    kept.stage("a", state(2))
    kept.stage("b", state(3))
    kept.settle(counted=False)
    kept.settle(counted=True)
    assert kept.read("a", SHARED)["v"].tolist() == [1.0] and set(kept.committed()) == {"a"}


def test_a_checkpoint_can_be_restored_and_is_not_changed_afterwards() -> None:
    kept, other = store(), store()
    kept.stage("a", state(1))
    kept.settle(counted=True)
    checkpoint = kept.committed()
    other.stage("b", state(9))
    other.restore(checkpoint)
    other.settle(counted=True)
    assert set(other.committed()) == {"a"}, "what was pending before is gone"
    other.stage("c", state(3))
    other.settle(counted=True)
    assert set(checkpoint) == {"a"}
