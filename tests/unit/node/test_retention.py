"""How long personal states are kept, who looks after it, and what the guard says of a vault that is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.errors import FreeholdError, VaultKeyError, VaultPutBack
from freehold.node import agent as agent_module
from freehold.node import retention, vaultkey
from freehold.node.agent import Agent
from freehold.node.control import Control
from freehold.node.errands import Erased, Forget, Outgoing, PendingRounds, Quit, Settle, ToGuard
from freehold.node.lines import Line, parse, raw_lines
from freehold.node.upstream import Upstream
from freehold.node.vault import Vault
from freehold.plan import Plan, runs_of
from freehold.policy import sample_policy
from freehold.wire.client import Connection, trusting
from freehold.wire.local import channel_from, close, pair
from freehold.wire.messages import Settled, WorkReply
from freehold.wire.process import spawn
from tests.unit.node import test_guard
from tests.unit.node.vaults import LARGE, OTHER, RUN, SMALL
from tests.unit.node.vaults import Node as States

plan = test_guard.plan
DAY = 86400.0


def lines(state: Path) -> list[Line]:
    return [parse(line.rstrip(b"\n")) for line in raw_lines(state / "ledger" / "ledger.jsonl")]


def test_a_study_that_did_nothing_for_longer_than_it_is_kept_is_erased_and_the_ledger_says_so(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.trained(0, LARGE)
    states.now += 10 * DAY
    states.trained(0, SMALL, OTHER)
    states.put(1, "never settled", SMALL)
    for keep_days in ({}, {"heart": 10.0}, {"digits": 0.0}):
        retention.expire(states.vault, states.door, keep_days)
    assert states.committed() == LARGE, "it trained just now"
    states.now += 9.9 * DAY
    retention.expire(states.vault, states.door, {"heart": 9.0})
    assert states.committed() is None and states.committed(OTHER) is None and not states.pending() and not states.files()
    said = [line.text or "" for line in lines(tmp_path) if line.kind == "erased"]
    assert [text[:17] for text in said] == ["2 personal states", "1 personal states"]
    assert RUN[:16] in said[0] and OTHER[:16] in said[1]


def test_what_is_kept_no_longer_does_not_come_back(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.trained(0, LARGE)
    shutil.copytree(states.folder, tmp_path / "copy")
    states.now += DAY
    retention.expire(states.vault, states.door, {"heart": 0.5})
    states.end()
    shutil.rmtree(states.folder)
    shutil.copytree(tmp_path / "copy", states.folder)
    with pytest.raises(VaultPutBack):
        states.anew().committed()


# The guard.


@pytest.fixture
def node(tmp_path: Path, plan: Plan) -> Iterator[test_guard.Node]:
    found = test_guard.Node(tmp_path, plan)
    found.trainers.let.release(9)
    yield found
    found.guard.end()


def settled(node: test_guard.Node, round: int, found: object) -> None:
    assert isinstance(found, Outgoing)
    node.guard.answer(Settle(settled=[Settled(run=node.run, round=round, counted=found.sha256)]), [])


def test_a_guard_erases_what_the_policy_keeps_no_longer(
    node: test_guard.Node, tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(node, 0, node.train(0, 60.0))
    policy = tmp_path / "policy.toml"
    policy.write_text(sample_policy(plan.task.name) + "keep_days = 1.5\n")
    node.guard.rest()
    vault: Vault = node.guard._vault
    assert vault.due({plan.task.name: -1.0}) == {node.run.partition("-")[0]: 1}
    monkeypatch.setattr(vault, "_clock", lambda: 4e9)
    policy.write_text(sample_policy(plan.task.name))
    node.guard.rest()
    assert vault.due({plan.task.name: 0.0}), "no rule, no end"
    policy.write_text(sample_policy(plan.task.name) + "keep_days = 30\n")
    node.guard.rest()
    assert not vault.due({plan.task.name: -1.0})
    assert isinstance(node.train(1, 60.0), Outgoing), "it begins anew"


def test_a_guard_whose_vault_was_put_back_trains_nothing_and_says_why_in_the_ledger(
    node: test_guard.Node, tmp_path: Path, plan: Plan
) -> None:
    settled(node, 0, node.train(0, 60.0))
    node.guard._vault.close()
    shutil.copytree(tmp_path / "vault", tmp_path / "copy")
    settled(node, 1, node.train(1, 60.0))
    node.guard.answer(Quit(), [])
    node.guard._vault.close()
    node.guard._door.close()
    shutil.rmtree(tmp_path / "vault")
    shutil.copytree(tmp_path / "copy", tmp_path / "vault")
    again = test_guard.Node(tmp_path, plan)
    asked, _ = again.guard.answer(Settle(), [])
    assert isinstance(asked, PendingRounds)
    for _ in range(2):
        with pytest.raises(VaultPutBack, match="newest") as caught:
            again.train(2, 60.0)
        assert "same, newest backup" in caught.value.hint
    assert again.trainers.started == 0 and again.run == runs_of(plan)[0].id
    erased, _ = again.guard.answer(Forget(), [])
    assert erased == Erased(states=1)
    last = lines(tmp_path)[-1]
    assert last.kind == "erased" and (last.text or "").startswith("1 personal states; the vault's key")
    assert not (tmp_path / "vault.key").exists()


def test_the_guard_alone_learns_where_the_credentials_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vaultkey.VARIABLE, "/run/credentials/freehold.service")
    for module, told in (("freehold.node.guard", True), ("freehold.node.trainer", False)):
        ours, theirs = pair()
        with theirs:
            child = spawn(module, theirs.fileno())
        while not (environ := Path(f"/proc/{child.pid}/environ").read_bytes()):
            pass  # the kernel is not done with starting it
        child.kill()
        child.wait()
        ours.close()
        assert (f"{vaultkey.VARIABLE}=/run/credentials/freehold.service".encode() in environ) == told
    assert vaultkey.credentials() == Path("/run/credentials/freehold.service")


# The agent.


def upstream(url: str, state: Path) -> Upstream:
    return Upstream(Connection(url, trusting("")), Control(state))


class Guards:
    """Guards in threads, which have nothing to tell."""

    pid = 0

    def __init__(self) -> None:
        self.asked: list[str] = []

    def spawn(self, module: str, fd: int) -> subprocess.Popen[bytes]:
        threading.Thread(target=self._serve, args=(os.dup(fd),), daemon=True).start()
        return self  # type: ignore[return-value]

    def _serve(self, fd: int) -> None:
        channel = channel_from(fd)
        try:
            while True:
                errand, fds = channel.receive(ToGuard)
                close(fds)
                self.asked.append(type(errand).__name__)
                channel.send(PendingRounds(pending=[]))
        except FreeholdError:
            channel.close()

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


def test_an_agent_without_work_starts_a_guard_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guards = Guards()
    url = "https://localhost:1"
    agent = Agent(upstream(url, tmp_path), node="alice", state=tmp_path, datasets={}, url=url, spawn=guards.spawn)
    nothing = WorkReply(settled=[], work=None)
    agent._follow(nothing)
    assert guards.asked == []
    monkeypatch.setattr(agent_module, "TEND_S", -1.0)
    agent._follow(nothing)
    assert guards.asked == ["Hello", "Settle"]
    monkeypatch.setattr(agent_module, "TEND_S", DAY)
    monkeypatch.setattr(agent_module, "IDLE_S", -1.0)
    agent._follow(nothing)
    assert guards.asked == ["Hello", "Settle"]
    assert agent._guard.pid is None


def test_a_node_whose_credential_is_open_to_others_does_not_start_and_says_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment of the agent to its guard, a process as in production, and back."""
    key = tmp_path / "credentials" / "vault.key"
    key.parent.mkdir()
    key.write_bytes(bytes(32))
    key.chmod(0o404)
    monkeypatch.setenv(vaultkey.VARIABLE, str(key.parent))
    url = "https://localhost:1"
    agent = Agent(upstream(url, tmp_path), node="alice", state=tmp_path, datasets={}, url=url, sandbox="off")
    with pytest.raises(VaultKeyError, match="read by others"):
        agent.run()
    assert not (tmp_path / "vault.key").exists()
