"""Study keys: who may start a study."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from freehold.errors import StudyRefused, UsageError
from freehold.signing import make_key, sign, trusting

PLAN, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key", tmp_path / "key.pub")
    return tmp_path / "key"


def test_a_plan_that_a_known_key_signed_is_admitted(key: Path, tmp_path: Path) -> None:
    trusting([tmp_path / "key.pub"])(PLAN, sign(PLAN, key))


def test_without_keys_every_plan_is_admitted() -> None:
    trusting([])(PLAN, None)


@pytest.mark.parametrize("signature", [None, "", "nonsense", "fhs1.0000000000000000.AAAA", "fhs2.x.y"])
def test_an_unsigned_or_foreign_plan_is_refused(key: Path, tmp_path: Path, signature: str | None) -> None:
    with pytest.raises(StudyRefused):
        trusting([tmp_path / "key.pub"])(PLAN, signature)


def test_the_signature_of_another_plan_is_refused(key: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyRefused, match="changed"):
        trusting([tmp_path / "key.pub"])(PLAN, sign(OTHER, key))


def test_the_signature_of_another_key_is_refused(key: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "other", tmp_path / "other.pub")
    with pytest.raises(StudyRefused, match="does not know"):
        trusting([tmp_path / "other.pub"])(PLAN, sign(PLAN, key))


def test_a_private_key_is_for_its_owner_only_and_is_never_replaced(key: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(UsageError):
        make_key(key, tmp_path / "new.pub")


def test_the_halves_of_a_key_are_not_taken_for_each_other(key: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="study key"):
        sign(PLAN, tmp_path / "key.pub")
    with pytest.raises(UsageError, match="public"):
        trusting([key])
