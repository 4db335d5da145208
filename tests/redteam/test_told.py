"""What an agent tells a coordinator of a refusal: a number that training code did not choose, and its sentence."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from freehold.errors import by_code
from freehold.node.agent import Agent
from freehold.node.control import Control
from freehold.node.errands import BY_TRAINING, Refused
from freehold.node.upstream import Upstream
from freehold.wire.client import Connection, trusting
from freehold.wire.messages import Blob, Declined, Train, WorkReply
from tests.redteam.stage import ROW

URL = "https://localhost:1"
WORK = Train(
    run="0" * 16 + "-0",
    round=0,
    cohort=1,
    population=1,
    plan=Blob(sha256="0" * 64, length=0),
    shared=Blob(sha256="0" * 64, length=0),
    left_s=1.0,
)


@pytest.mark.parametrize("code", sorted({*BY_TRAINING, 305, 331, 9999}))
def test_a_coordinator_gets_a_fixed_sentence(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Declined] = []

    def post(path: str, message: Declined, *rest: object, **more: object) -> WorkReply:
        sent.append(message)
        return WorkReply()

    connection = Connection(URL, trusting(""))
    monkeypatch.setattr(connection, "post", post)
    agent = Agent(Upstream(connection, Control(tmp_path)), node="alice", state=tmp_path, datasets={}, url=URL)
    agent._decline(WORK, Refused(code=code, message=ROW, hint=ROW))
    (declined,) = sent
    assert declined.code == (306 if code in BY_TRAINING else code)
    kind = by_code(declined.code)
    assert declined.message == ((kind.__doc__ or "").splitlines()[0] if kind else f"Error {code}.")
    assert ROW.encode() not in msgspec.json.encode(declined)


@pytest.mark.parametrize(("code", "choice"), [(331, True), (332, True), (333, True), (334, True), (306, False), (338, False)])
def test_what_the_owner_decided_is_not_shown_to_them_as_an_error(
    code: int, choice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(URL, trusting(""))
    monkeypatch.setattr(connection, "post", lambda *said, **more: WorkReply())
    agent = Agent(Upstream(connection, Control(tmp_path)), node="alice", state=tmp_path, datasets={}, url=URL)
    agent._answer(WORK, Refused(code=code, message="It is so.", hint="Because."), [])
    assert (bool(agent.status.last_choice), bool(agent.status.last_error)) == (choice, not choice)
