"""Whether a piece of work is done at all: the owner's policy and approvals, asked once for each errand.

The reason stays on this machine: an error's message is a fixed sentence, which is all that a coordinator gets; its hint,
which the node's page and log show, is the reason. A policy that is broken while the node runs leaves the last good one in force.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from freehold import durable
from freehold.errors import ApprovalError, BenefitKept, NodeError, OwnerDenied, PlanWaits, PolicyError, PolicyRefused
from freehold.events import Event
from freehold.node.approvals import Approvals
from freehold.node.benefit import binned
from freehold.node.errands import MeasureErrand, OutgoingMeasures, TrainErrand
from freehold.node.rulings import Rulings
from freehold.node.sandboxed import Bounds
from freehold.node.withheld import can_withhold, narrow
from freehold.plan import Plan, Run, digest
from freehold.policy import FILE, DataRules, Facts, Policy, Verdict, decide, parse_policy, read_policy
from freehold.policy.decide import contribution_bytes, is_foreign
from freehold.policy.tables import Sandbox

IN_FORCE = "policy.in-force.toml"
"""The last good policy, beside the approvals: a guard that is started anew goes on with it where policy.toml is broken."""
TASKS = "freehold.tasks"

MOST_DIGESTS = 64
"""Plans whose digest is kept at once."""

_LEFT = "left"
"""Beside pieces of work that are begun: all that have left today."""

NOTHING: Mapping[str, str] = {}
SAID = {
    "waits": "The owner of the data has not approved this plan yet.",
    "denied": "The owner of the data does not allow this.",
    "kept": "The owner of the data keeps what was measured.",
}
"""All that a coordinator is told."""


def rules_file(state: Path) -> Path:
    """The policy's file of the node in this folder: what node.toml says, or policy.toml; else the copy of what is in force.

    A node may have been started with --policy, which nothing else remembers.
    """
    said = _settings(state).get("policy")
    found = state / str(said) if said else state / FILE
    return found if found.exists() else state / "approvals" / IN_FORCE


def tables(state: Path) -> dict[str, Path]:
    """Data set -> file of its table, as node.toml in this folder says; {} where it says nothing."""
    said = _settings(state).get("data")
    return {str(name): state / str(path) for name, path in said.items()} if isinstance(said, dict) else {}


def _settings(state: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads((state / "node.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _given(rules: DataRules | None) -> tuple[object, ...]:
    """What a trainer has from its start on: another one is started when it changes."""
    found = rules or DataRules()
    return found.columns, found.memory or None, found.cpus or None, found.gpu


class Admission:
    """The owner's word on each errand."""

    def __init__(
        self,
        state: Path,
        policy: Path | None = None,
        *,
        datasets: Mapping[str, str] = NOTHING,
        sandbox: Sandbox = "none",
        bounded: Literal["", "processes", "group"] = "",
        note: Callable[..., object] = lambda kind, text, **told: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`policy`: policy.toml in the state folder if it is not given. Whatever it is like, this does not raise.

        `sandbox`: the level at which trainers run. `bounded`: what holds them to limits on memory and processors. `note` writes
        what the owner decided into the ledger.
        """
        self._state, self._path, self._clock = state, policy or state / FILE, clock
        self._datasets, self._sandbox, self._bounded, self._note = datasets, sandbox, bounded, note
        self._read: dict[int, tuple[Plan, DataRules | None]] = {}
        """Plan -> the rules under which its trainer was started."""
        self._approvals, self._rulings = Approvals(state, clock=clock), Rulings(state, clock=clock)
        self._policy = Policy()
        self._seen: tuple[tuple[int, ...], str] = ((), "")
        self._events: list[Event] = []
        self._installed = frozenset(point.name for point in entry_points(group=TASKS))
        self._digests: dict[int, tuple[Plan, str]] = {}
        self._told: set[tuple[str, str]] = set()
        kept = self._read_kept()
        self._known = kept is not None
        """Whether some policy was in force before, so that another one is a change."""
        self._in_force = "" if kept is None else self._digest_kept()
        """SHA-256 of the policy's text."""
        if kept is not None:
            self._policy = kept

    def ask(
        self,
        plan: Plan,
        run: Run,
        errand: TrainErrand | MeasureErrand,
        *,
        refused: Callable[[], object],
        renewed: Callable[[], object],
    ) -> DataRules:
        """The rules under which the errand is done. Raises PlanWaits, OwnerDenied or PolicyRefused, after calling `refused`.

        `renewed` is called where a trainer has read other columns than it now may, or takes more than it now may.
        """
        identity = self._digest(plan)
        training = isinstance(errand, TrainErrand)
        try:
            self._approvals.tell(self._note)
            self._reload()
            approval = self._approvals.state_of(identity)
            verdict = decide(
                self._policy,
                plan,
                Facts(
                    installed=self._installed,
                    now=self._clock(),
                    signature=errand.signature,
                    digest=identity,
                    cohort=errand.cohort if isinstance(errand, TrainErrand) else None,
                    sent_today=self._sent(plan.task.name, f"{errand.run}:{errand.round}"),
                    approval=approval,
                    counted=True,
                    sandbox=self._sandbox,
                    bounded=self._bounded,
                    narrowed=can_withhold(Path(self._datasets.get(plan.task.name, ""))),
                ),
            )
            self._rulings.keep(verdict, plan, identity, errand.signature, self._in_force)
            if verdict.rules is None:
                raise self._refusal(verdict, plan, identity, errand.signature)
            if training and verdict.rules.bytes_per_day is not None:
                self._count(plan.task.name, f"{errand.run}:{errand.round}", contribution_bytes(run.contribution))
        except NodeError:
            refused()
            raise
        read = self._read.get(id(plan))
        if read is not None and _given(read[1]) != _given(verdict.rules):
            renewed()
        return verdict.rules

    def table(self, plan: Plan, path: str) -> str:
        """The table that a trainer of this plan reads: the owner's file, or a copy with the columns that it may read."""
        rules = self._policy.data.get(plan.task.name)
        columns = None if rules is None else rules.columns
        self._read[id(plan)] = (plan, rules)
        if columns is None:
            return path
        copy = self._state / "columns" / f"{plan.task.name}.csv"
        narrow(Path(path), columns, copy)
        return str(copy)

    def bounds(self, plan: Plan) -> Bounds:
        """What its trainer may take of the machine."""
        rules = self._policy.data.get(plan.task.name) or DataRules()
        return Bounds(memory=rules.memory or None, cpus=rules.cpus or None, gpu=rules.gpu)

    def share(self, rules: DataRules, plan: Plan, measured: OutgoingMeasures) -> OutgoingMeasures:
        """What leaves of what was measured; raises BenefitKept where nothing does.

        Measures have no noise, and rest on every record here, by the personal model too: under a plan that promises an ε they
        stay, whatever the policy says. Of code that the owner does not trust none leaves either: they could say anything.
        """
        if plan.privacy.unit != "none":
            raise BenefitKept(
                SAID["kept"],
                hint="They are on this node's page. The plan promises an ε, and no noise is in what was measured, so it stays.",
            )
        if rules.share_benefit == "never" or (is_foreign(plan, self._installed) and plan.task.bundle not in rules.trusted_code):
            raise BenefitKept(
                SAID["kept"], hint='They are on this node\'s page; share_benefit = "binned" would tell them roughly.'
            )
        if rules.share_benefit == "named":
            return measured
        return OutgoingMeasures(splits=binned(measured.splits), alone=binned(measured.alone), served=measured.served)

    def keep_days(self) -> dict[str, float]:
        """How long personal states are kept, of the data sets that have a limit."""
        self._reload()
        return {name: rules.keep_days for name, rules in self._policy.data.items() if rules.keep_days is not None}

    def events(self) -> list[Event]:
        """What happened since this was last asked."""
        found, self._events = self._events, []
        return found

    def _refusal(
        self, verdict: Verdict, plan: Plan, identity: str, signature: str | None
    ) -> PlanWaits | OwnerDenied | PolicyRefused:
        short = identity[:19]
        why = "; ".join(f"{each.rule}: {each.found}, wanted {each.wanted}" for each in verdict.failed)
        if verdict.says == "waits":
            new = self._first("waits", identity)
            if self._approvals.wait(plan, identity, signature) or new:
                self._events.append(Event("plan.waits", {"plan": identity, "name": plan.name}))
            return PlanWaits(
                SAID["waits"], hint=f"{plan.name} waits for you: freehold node show {short}, then approve or deny it."
            )
        if self._first("denied", identity):
            rules = ", ".join(each.rule for each in verdict.failed)
            self._events.append(Event("plan.denied", {"plan": identity, "name": plan.name, "rules": rules}))
        if verdict.failed[0].rule == "owner":
            return OwnerDenied(SAID["denied"], hint=f"You denied {plan.name}: freehold node show {short}.")
        return PolicyRefused(SAID["denied"], hint=f"{plan.name} ({short}): {why}.")

    def _first(self, what: str, identity: str) -> bool:
        """Whether this is told for the first time since the guard was started."""
        new = (what, identity) not in self._told
        self._told.add((what, identity))
        return new

    def _digest(self, plan: Plan) -> str:
        known = self._digests.get(id(plan))
        if known is None or known[0] is not plan:
            if len(self._digests) >= MOST_DIGESTS:
                self._digests.clear()
            known = self._digests[id(plan)] = (plan, digest(plan))
        return known[1]

    # The policy, read again when its file is another one.

    def _reload(self) -> None:
        version: tuple[int, ...] = ()
        try:
            found = os.stat(self._path)
            version = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
        except OSError:
            pass  # no file: no rules
        if (version, str(self._path)) == self._seen:
            return
        self._seen = (version, str(self._path))
        try:
            body = read_policy(self._path)
            policy = parse_policy(body, str(self._path))
        except PolicyError as error:
            self._events.append(Event("policy.broken", {"code": error.code, "why": error.message}))
            return
        if policy != self._policy and self._known:
            self._events.append(Event("policy.changed", {"data": ", ".join(sorted(policy.data))}))
        if policy != self._policy or self._read_kept() != policy:
            self._tell(body)
            self._policy = policy
            self._known = True
            self._told.clear()
            self._keep(body)
            self._in_force = _digest(body)

    def _tell(self, body: bytes) -> None:
        """Write into the ledger what is in force from now on; where that cannot be done, the old one stays."""
        before = self._digest_kept() or "none"
        try:
            if before != _digest(body):
                self._note("policy", f"before: {before}", sha256=_digest(body))
        except NodeError:
            self._seen = ((), "")
            raise

    def _keep(self, body: bytes) -> None:
        """Write down what is in force. Where that cannot be done, the old one must not come back: then nothing is in force."""
        folder = self._approvals.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(folder / IN_FORCE, body, point="node.policy")
        except OSError as error:
            self._policy, self._seen = Policy(), ((), "")
            raise ApprovalError(
                f"{folder} cannot be written: {error.strerror}.", hint="Make room on the disk; nothing is done until then."
            ) from error

    def _digest_kept(self) -> str:
        try:
            return _digest((self._approvals.folder / IN_FORCE).read_bytes())
        except OSError:
            return ""

    def _read_kept(self) -> Policy | None:
        try:
            return parse_policy((self._approvals.folder / IN_FORCE).read_bytes())
        except (OSError, PolicyError):
            return None

    # Bytes of a day. Counted before the work is done, so that a crash never counts too few.

    def _sent(self, data: str, work: str) -> int:
        """What was allowed to leave today, but for this piece of work."""
        rules = self._policy.data.get(data)
        if rules is None or rules.bytes_per_day is None:
            return 0
        return sum(size for key, size in self._counts().get(data, {}).items() if key != work)

    def left(self, data: str, work: str) -> None:
        """What was counted of this piece of work leaves now: whoever asks for the same once more has it counted once more."""
        rules = self._policy.data.get(data)
        if rules is None or rules.bytes_per_day is None:
            return
        counts = {name: dict(each) for name, each in self._counts().items()}
        size = counts.get(data, {}).pop(work, None)
        if size is not None:
            counts[data][_LEFT] = counts[data].get(_LEFT, 0) + size
            self._write_counts(counts)

    def _count(self, data: str, work: str, size: int) -> None:
        counts = {name: dict(each) for name, each in self._counts().items()}
        if counts.get(data, {}).get(work) == size:
            return
        counts.setdefault(data, {})[work] = size
        self._write_counts(counts)

    def _write_counts(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        told = {"day": self._today(), "sent": counts}
        try:
            self._approvals.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._approvals.folder / "bytes.today", json.dumps(told).encode(), point="node.bytes")
        except OSError as error:
            raise ApprovalError(
                f"{self._approvals.folder} cannot be written: {error.strerror}.", hint="Make room on the disk; nothing was sent."
            ) from error

    def _counts(self) -> Mapping[str, Mapping[str, int]]:
        path = self._approvals.folder / "bytes.today"
        try:
            told = json.loads(path.read_bytes())
            day, sent = str(told["day"]), {str(d): {str(k): int(v) for k, v in each.items()} for d, each in told["sent"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ApprovalError(
                f"{path} is damaged, so nobody knows what left today.", hint="Delete it tomorrow, or raise bytes_per_day."
            ) from error
        return sent if day == self._today() else {}

    def _today(self) -> str:
        return datetime.date.fromtimestamp(self._clock()).isoformat()


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
