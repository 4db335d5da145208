"""A plan with noise, and code that would be louder than it, hide below it, or take it away again."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freehold.node import guard, release
from freehold.node.errands import Outgoing
from freehold.plan import Plan, Privacy
from freehold.plan.tables import TensorSpec
from freehold.wire import codec
from freehold.wire.local import close
from tests.redteam.channels import shows
from tests.redteam.stage import Asked, Reply, Script, Stage, good, numbers, plan_of, stopped, tensors
from tests.unit.node.test_noise import Fixed

NORM, NOISE, COUNT = 2.0, 0.5, 40_000
PRIVACY = Privacy(unit="client", max_norm=NORM, noise_multiplier=NOISE)


def wide() -> Plan:
    """One tensor, of so many numbers."""
    plan = plan_of(privacy=PRIVACY)
    spec = msgspec.structs.replace(plan.contribution, tensors=(TensorSpec(name="w", shape=(COUNT,), dtype="float64"),))
    return msgspec.structs.replace(plan, contribution=spec)


def begin(folder: Path, script: Script) -> Stage:
    return Stage(folder, wide(), script, release="noised")


def leaving(stage: Stage, round: int = 0) -> np.ndarray:
    left = stage.train(round)
    assert isinstance(left.reply, Outgoing) and left.reply.weight == 1.0, left.reply
    close(left.fds)
    return numbers(left.bodies[0])


def loud(asked: Asked) -> Reply:
    """A record in numbers of a million each."""
    return good(asked, weight=1.0, body=codec.write(tensors(asked.spec, 1e6)))


def still(*given: object, **named: object) -> None:
    """No noise."""


@shows("oversized")
def test_an_update_of_any_size_is_clipped_and_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its norm is the plan's at most, and noise's on top; the ledger has ε. Without the clip it is loud."""
    stage = begin(tmp_path / "with", loud)
    try:
        found = leaving(stage)
        noise = found - NORM / math.sqrt(COUNT)
        assert noise.std() == pytest.approx(NOISE * NORM, rel=0.03)
        assert np.linalg.norm(found) == pytest.approx(math.hypot(NORM, NOISE * NORM * math.sqrt(COUNT)), rel=0.03)
        (line,) = stage.sent()
        assert (line.unit, line.release) == ("client", "noised") and line.epsilon is not None and line.epsilon > 0
    finally:
        stage.close()
    monkeypatch.setattr(release.DiscreteGaussian, "add_to", still)
    stage = begin(tmp_path / "still", loud)
    try:
        assert np.linalg.norm(leaving(stage)) == pytest.approx(NORM, rel=1e-6)
        assert np.linalg.norm(leaving(stage, 1)) <= NORM
    finally:
        stage.close()
    monkeypatch.setattr(release.FixedPoint, "of", lambda view, spans, scale, norm: release.FixedPoint(0, scale))
    stage = begin(tmp_path / "loud", loud)
    try:
        assert np.linalg.norm(leaving(stage)) > 1e6
    finally:
        stage.close()


def quiet(asked: Asked) -> Reply:
    """Half of the numbers are minus zero, a quarter subnormal, a quarter differ in the last bits of a float64."""
    body = np.zeros(COUNT)
    body[0::2] = -0.0
    body[1::4] = 5e-324
    body[3::4] = 2.0**-6 * (1 + 2.0**-52 * 3)
    return good(asked, weight=1.0, body=codec.write({"w": body}))


@shows("small-numbers")
def test_what_is_below_the_grid_is_not_there_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = 2.0 ** -wide().contribution.scale
    stage = begin(tmp_path / "with", quiet)
    try:
        found = leaving(stage)
        assert (found / unit == np.rint(found / unit)).all(), "on the grid"
        assert not np.signbit(found[found == 0]).any()
    finally:
        stage.close()
    monkeypatch.setattr(guard, "released", lambda fd, spec, privacy: fd)
    stage = begin(tmp_path / "without", quiet)
    try:
        found = leaving(stage)
        assert np.signbit(found[0::2]).all() and (found[1::4] == 5e-324).all()
    finally:
        stage.close()


def seeding(asked: Asked) -> Reply:
    """Set every seed that there is."""
    random.seed(0)
    np.random.seed(0)
    return good(asked, weight=1.0, body=codec.write({"w": np.zeros(COUNT)}))


@shows("seeds")
def test_seeds_do_not_reach_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same contribution leaves as other numbers each time; with bits from a seed it could be subtracted."""
    stage = begin(tmp_path / "with", seeding)
    try:
        first, second = leaving(stage), leaving(stage, 1)
        assert (first != second).mean() > 0.9
        assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.05
    finally:
        stage.close()
    monkeypatch.setattr(guard, "released", partial(release.released, stream=lambda: Fixed(0)))
    stage = begin(tmp_path / "seeded", seeding)
    try:
        assert (leaving(stage) == leaving(stage, 1)).all()
    finally:
        stage.close()


@shows("weight-uniform")
def test_with_noise_every_contribution_weighs_one(tmp_path: Path) -> None:
    stage = begin(tmp_path, lambda asked: good(asked, weight=63.0))
    try:
        stopped(stage, stage.train(0), 507)
        assert stage.sent() == []
    finally:
        stage.close()
