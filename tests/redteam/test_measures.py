"""Records in measures: by names, digits and counts; and what is left of them under each word of the owner's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from freehold.node import admission, claims, guard
from freehold.node.errands import OutgoingMessage
from freehold.wire.messages import Measured, Measures, decode
from tests.redteam.channels import shows
from tests.redteam.stage import ROW, Asked, Reply, Script, Stage, measured, plan_of, stopped

GOOD = {"count": 20.0, "correct": 15.0, "loss": 7.25}


def told_by(reply: object) -> Measures:
    """The message, as a coordinator reads it."""
    assert isinstance(reply, OutgoingMessage)
    return decode(reply.body, Measures)


def told(examples: int = 20, split: str = "test", **sums: float) -> dict[str, object]:
    return {split: {"examples": examples, "sums": {**GOOD, **sums}}}


def saying(**changed: object) -> Script:
    return lambda asked: measured(asked, **changed)


ATTEMPTS: dict[str, tuple[Script, int]] = {
    "measure-name": (saying(splits=told(**{ROW: 1.0})), 336),
    "measure-split": (saying(splits=told(split=ROW)), 336),
    "measure-fraction": (saying(splits=told(correct=15.63145)), 336),
    "measure-served": (saying(served=ROW), 336),
}
CARRIED = {"measure-fraction": b"15.63145"}


@pytest.mark.parametrize("name", ATTEMPTS)
@shows(*ATTEMPTS)
def test_what_is_not_known_or_cannot_be_true_does_not_leave(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the check it would."""
    script, code = ATTEMPTS[name]
    stage = Stage(tmp_path / "with", plan_of(), script, share="named")
    try:
        stopped(stage, stage.measure(), code)
        assert stage.sent() == []
        assert not list(tmp_path.glob("with/**/claims/*")), "names that code makes up do not fill the disk either"
    finally:
        stage.close()
    monkeypatch.setattr(guard, "may_leave", lambda splits: dict(splits))
    monkeypatch.setattr(guard, "known_choice", lambda served: served)
    stage = Stage(tmp_path / "without", plan_of(), script, share="named")
    try:
        left = stage.measure()
        assert isinstance(left.reply, OutgoingMessage) and CARRIED.get(name, ROW.encode()) in left.leaves
    finally:
        stage.close()


@shows("measure-few")
def test_sums_over_one_record_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saying(splits={"test": {"examples": 1, "sums": {"count": 1.0, "target": 63.0, "loss": 145.25}}}, alone={})
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(guard, "may_leave", lambda splits: dict(splits))
        stage = Stage(tmp_path / str(patched), plan_of(), one, share="named")
        try:
            left = stage.measure()
            assert told_by(left.reply).splits["test"].examples == 1, "how many there are is told: none is described"
            assert (b"145.25" in left.leaves) is patched
        finally:
            stage.close()


def counting(asked: Asked) -> Reply:
    asked.said.append(asked.job.round)
    examples = 62 + len(asked.said)
    sums = {"count": float(examples)}
    return measured(asked, splits={"test": {"examples": examples, "sums": sums}}, alone={})


@shows("measure-examples")
def test_a_split_has_one_number_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path / "with", plan_of(), counting, share="named")
    try:
        assert isinstance(stage.measure(1).reply, OutgoingMessage)
        stopped(stage, stage.measure(2), 336)
    finally:
        stage.close()
    monkeypatch.setattr(claims.Claims, "examples", lambda *given: None)
    stage = Stage(tmp_path / "without", plan_of(), counting, share="named")
    try:
        found = [told_by(stage.measure(round).reply).splits["test"].examples for round in (1, 2, 3)]
        assert found == [63, 64, 65], "a letter each time"
    finally:
        stage.close()


def loss_of(left: object) -> float:
    return told_by(left).splits["test"].sums["loss"]


@shows("measure-kept", "measure-binned")
def test_digits_leave_as_the_owner_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never: not at all. Binned: two digits of each figure, and a sign and a size, whatever the digits are."""
    script = saying(splits=told(loss=63114523.3150231), alone={})
    stage = Stage(tmp_path / "never", plan_of(), script)
    try:
        stopped(stage, stage.measure(), 334)
        assert stage.sent() == []
    finally:
        stage.close()
    stage = Stage(tmp_path / "binned", plan_of(), script, share="binned")
    try:
        found = loss_of(stage.measure().reply) / 20
        assert found == pytest.approx(3.2e6) and len(stage.sent()) == 1
    finally:
        stage.close()
    monkeypatch.setattr(admission, "binned", lambda splits: dict(splits))
    stage = Stage(tmp_path / "without", plan_of(), script, share="binned")
    try:
        assert loss_of(stage.measure().reply) == 63114523.3150231
    finally:
        stage.close()


def test_a_binned_figure_is_one_of_few() -> None:
    """Over twelve decades of a loss: less than eleven bits, where a float has more than fifty."""
    figures = set()
    for step in range(60_000):
        loss = 10 ** (12 * step / 60_000)
        sums = admission.binned({"test": Measured(examples=10, sums={"loss": loss})})["test"].sums
        figures.add(sums["loss"])
    assert 500 < len(figures) < 2**11
    assert math.isfinite(max(figures))
