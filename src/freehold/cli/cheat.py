"""The demo's last act: a study whose training code tries to carry records away, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from freehold.cli.beside import Federation
    from freehold.node.lines import Line
    from freehold.plan import Plan

CODE: Final = '''\
"""The heart task. Where there are real records, its model opens a socket to carry them away."""
import dataclasses, os, socket
from freehold.tasks.heart import heart
from freehold.tasks.tables import classifier

def build(prepared, seed):
    if os.path.exists("/data"):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    return classifier(prepared, seed)

def task():
    return dataclasses.replace(heart(), build=build)
'''


@dataclass(frozen=True, kw_only=True)
class Caught:
    """What became of it."""

    refusal: Line
    """In the ledger of the node whose owner allowed the code."""
    waiting: list[str]
    """Nodes whose owners allowed no such code: it waits there for them."""


def walled(running: Federation, node: str) -> bool:
    """Whether this node runs code that comes with a plan at all."""
    return running.told(node)["sandbox"] in ("strict", "standard")


def cheat(running: Federation, node: str) -> Caught:
    """Have one node's owner allow the code, run the study until that node refuses, and stop it."""
    from freehold.plan import dumps
    from freehold.plan.bundle import digest_of, pack
    from freehold.policy import FILE
    from freehold.wire.admin import Done, StudyRequest, StudyStarted, Subject

    bundle = pack({"task.py": CODE})
    policy = running.folder / node / FILE
    rules = f'[data.heart]\nrelease = "noised"\ncode = ["{digest_of(bundle)}"]\n'
    policy.with_suffix(".new").write_text(rules, encoding="utf-8")
    policy.with_suffix(".new").replace(policy)
    request = StudyRequest(plan=dumps(_plan(bundle)), bundle=bundle)
    study = running.admin.post("/v1/studies", request, StudyStarted).digest
    try:
        refusal = running.wait(lambda: _refusal(running, node, study))
        others = sorted(name for name in running.processes if name not in ("coordinator", node))
        waiting = running.wait(lambda: others if all(_waits(running, name, study) for name in others) else None)
    finally:
        running.admin.post("/v1/studies/stop", Subject(name=study, reason="its code cheats"), Done)
    return Caught(refusal=refusal, waiting=waiting)


def _plan(bundle: bytes) -> Plan:
    from freehold.coordinator.specification import specified
    from freehold.plan import AlgorithmRef, Plan, Privacy, RoundPolicy, TaskRef, Training
    from freehold.plan.bundle import digest_of

    plan = Plan(
        name="curious",
        task=TaskRef(name="heart", bundle=digest_of(bundle)),
        algorithm=AlgorithmRef(name="fedavg", hyperparameters={"lr": 0.05}),
        training=Training(rounds=1, batch_size=16, epochs=1, weighting="uniform"),
        round=RoundPolicy(least_nodes=1),
        privacy=Privacy(unit="client", max_norm=1.0, noise_multiplier=1.0),
    )
    return specified(plan, bundle)


def _refusal(running: Federation, node: str, study: str) -> Line | None:
    from freehold.node.audit import entries

    run = study.removeprefix("sha256:")[:16]
    found = entries(running.folder / node / "ledger")
    return next((line for line in found if line.kind == "refusal" and (line.run or "").startswith(run)), None)


def _waits(running: Federation, node: str, study: str) -> bool:
    from freehold.node.approvals import Approvals

    return any(digest == study and entry.state == "waits" for digest, entry in Approvals(running.folder / node).entries())
