"""Records in a personal state: another study's code does not get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.node.errands import Outgoing, Settle
from freehold.node.vault import Vault
from freehold.plan import runs_of
from freehold.wire.local import close, sealed
from freehold.wire.messages import Settled
from tests.redteam.channels import shows
from tests.redteam.stage import ROW, Asked, Reply, Stage, good, plan_of


def keeping(asked: Asked) -> Reply:
    """Put the record into the personal state, and note which one comes."""
    asked.said.append(asked.personal)
    return good(asked, personal=ROW.encode())


def one_round(stage: Stage, plan: object, round: int) -> bytes:
    """A round that counts; what left."""
    left = stage.train(round, plan)  # type: ignore[arg-type]
    assert isinstance(left.reply, Outgoing)
    close(left.fds)
    run = runs_of(plan)[0].id  # type: ignore[arg-type]
    stage.ask(Settle(settled=[Settled(run=run, round=round, counted=left.reply.sha256)]))
    return left.leaves


@shows("later-study", "later-round")
def test_a_personal_state_is_one_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back in the next round of its run, and in no other study, even of the same name; and it leaves in neither."""
    one, other = plan_of("later"), plan_of("later", rounds=9)
    stage = Stage(tmp_path / "with", one, keeping)
    try:
        left = [one_round(stage, one, 0), one_round(stage, one, 1), one_round(stage, other, 0)]
        assert stage.threads.said == [None, ROW.encode(), None]
        assert not any(ROW.encode() in each for each in left)
    finally:
        stage.close()
    monkeypatch.setattr(Vault, "committed", lambda self, run, plan: sealed(ROW.encode(), "any"))
    stage = Stage(tmp_path / "without", one, keeping)
    try:
        one_round(stage, other, 0)
        assert stage.threads.said == [ROW.encode()]
    finally:
        stage.close()
