"""What a policy says to a plan, rule by rule: what was found, what was wanted, and the line that would allow it.

Pure: what is known of the node and of the day comes in as `Facts`.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from freehold.errors import UsageError
from freehold.hours import Hours
from freehold.plan import Contribution, Plan, digest
from freehold.policy.tables import SANDBOXES, DataRules, Policy, Sandbox

LEAST_FOR_BUNDLES: Sandbox = "standard"
"""The weakest sandbox that code which comes with a plan may run in, whatever a policy says."""

OVERHEAD_BYTES = 1024
"""Of a contribution's header, beside what each tensor takes in it."""
_TENSOR_BYTES = 128
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known beside the plan."""

    installed: frozenset[str]
    """Names of the tasks that are installed on this node; another one is foreign code."""
    now: float
    """Unix time."""
    signature: str | None = None
    """Of the plan."""
    digest: str = ""
    """Of the plan, if somebody has it already."""
    cohort: int | None = None
    """Nodes that were asked in this round, as the coordinator says; None: there is no round yet."""
    sent_today: int = 0
    """Bytes of contributions to studies on this data that left on this day."""
    epsilon: float | None = None
    """What the whole plan costs each record or client, to its end; None: nobody can tell."""
    records: int | None = None
    """Training records that it was counted with, of a promise per record."""
    spent: float = 0.0
    """What earlier studies cost."""
    counted: bool = False
    """Whether the node's budget counts ε by itself, and refuses what would overdraw it, before anything is trained."""
    sandbox: Sandbox = "none"
    """What this node reaches."""
    bounded: Literal["", "processes", "group"] = ""
    """What holds a trainer to limits on memory and processors: a control group, or limits of each process; "": nothing."""
    columns: tuple[str, ...] | None = None
    """What the task reads; None: nobody knows here."""
    narrowed: bool = True
    """Whether the node can withhold the columns that a policy does not list."""
    approval: Literal["", "approved", "denied"] = ""
    """What the owner said of this very plan."""
    local: Callable[[float], time.struct_time] = time.localtime


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One rule. `line`: what in the data set's table would make it pass; "" if only another plan would."""

    rule: str
    passed: bool
    found: str
    wanted: str
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a plan, and why."""

    says: Literal["allowed", "waits", "denied"]
    data: str
    """The name of the data set."""
    findings: tuple[Finding, ...]
    rules: DataRules | None
    """What holds for what is allowed; None where nothing does."""

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The rules that did not pass."""
        return tuple(each for each in self.findings if not each.passed)


def decide(policy: Policy, plan: Plan, facts: Facts) -> Verdict:
    """What the policy says. What the owner denied is denied; an approval covers what no rule covers, and lifts no limit."""
    data = plan.task.name
    if facts.approval == "denied":
        owner = Finding(rule="owner", passed=False, found="the owner denied this plan", wanted="`freehold node approve`")
        return Verdict(says="denied", data=data, findings=(owner,), rules=None)
    said = policy.data.get(data)
    approved, foreign = facts.approval == "approved", is_foreign(plan, facts.installed)
    rules = said
    if rules is None and approved:
        rules = DataRules(release="noised" if foreign else "trusted-code", tasks=() if foreign else (data,))
    if rules is None:
        table = Finding(
            rule="data", passed=False, found=f"no table for {data}", wanted="a table for the data", line=new_table(plan, facts)
        )
        return Verdict(says="waits", data=data, findings=(table,), rules=None)
    found = "approved by the owner" if said is None else f"[data.{data}]"
    table = Finding(rule="data", passed=True, found=found, wanted="a table for the data")
    code = _code(rules, plan, foreign=foreign, approved=approved)
    limits = tuple(_limits(rules, plan, facts, foreign=foreign))
    if not code.passed:
        return Verdict(says="waits", data=data, findings=(table, code, *limits), rules=None)
    good = all(each.passed for each in limits)
    return Verdict(
        says="allowed" if good else "denied", data=data, findings=(table, code, *limits), rules=rules if good else None
    )


_HELD = {
    "group": dict.fromkeys(("memory", "cpus"), "a control group holds the trainer to it"),
    "processes": {
        "memory": "the trainer and each file in memory are held to it, not their sum: there is no control group",
        "cpus": "the trainer is held to whole processors: there is no control group",
    },
    "": dict.fromkeys(("memory", "cpus"), "this node cannot hold trainers to it"),
}


def is_foreign(plan: Plan, installed: frozenset[str]) -> bool:
    """Whether a plan's code is not what is installed on the node: it comes along, or nobody here has it."""
    return plan.task.bundle is not None or plan.task.name not in installed


def new_table(plan: Plan, facts: Facts) -> str:
    """The least table that covers a plan."""
    name = plan.task.name
    heading = f"[data.{name if name.replace('-', '').replace('_', '').isalnum() else json.dumps(name)}]"
    if not is_foreign(plan, facts.installed):
        release = "trusted-code" if plan.privacy.unit == "none" else "noised"
        return f'{heading}\nrelease = "{release}"\ntasks = [{json.dumps(name)}]'
    lines = [heading, 'release = "noised"', f"code = [{json.dumps(plan.task.pinned)}]" if plan.task.pinned else ""]
    return "\n".join(filter(None, lines))


def _code(rules: DataRules, plan: Plan, *, foreign: bool, approved: bool) -> Finding:
    name, pinned = plan.task.name, plan.task.pinned
    code = f"code {pinned[:19]}…" if pinned else "code without a digest"
    where = "which comes with the plan" if plan.task.bundle is not None else "which is not installed here"
    found = f"{code}, {where}" if foreign else f"the installed task {name}"
    covered = (pinned in (*rules.code, *rules.trusted_code) and bool(pinned)) or (not foreign and name in rules.tasks)
    wanted = "one of tasks or code, or an approval"
    if covered or approved:
        return Finding(rule="code", passed=True, found=found, wanted=wanted)
    line = _list("tasks", rules.tasks, name) if not foreign else _list("code", rules.code, pinned) if pinned else ""
    return Finding(rule="code", passed=False, found=found, wanted=wanted, line=line)


def _limits(rules: DataRules, plan: Plan, facts: Facts, *, foreign: bool) -> Iterator[Finding]:
    yield _release(rules, plan, foreign=foreign)
    yield _signed(rules, plan, facts)
    yield from _privacy(rules, plan, facts)
    yield from _amounts(rules, plan, facts)
    yield from _surroundings(rules, plan, facts)


def _release(rules: DataRules, plan: Plan, *, foreign: bool) -> Finding:
    unit = plan.privacy.unit
    noised = unit != "none"
    found = f"noised, unit {unit}" if noised else "trusted-code"
    wanted: str = rules.release or "a release level"
    # Of foreign code even noise per record is only a promise: that code itself would have to add it.
    if foreign and plan.task.bundle not in rules.trusted_code:
        allowed = unit == "client" and rules.release is not None
        line = 'release = "noised"' if unit == "client" else ""
        if plan.task.bundle is not None and (rules.release == "trusted-code" or (noised and rules.release)) and unit != "client":
            line = f"{_list('trusted_code', rules.trusted_code, plan.task.bundle)}  # only if you have read it, and trust it"
        return Finding(
            rule="release", passed=allowed, found=f"foreign code, {found}", wanted="noise by the guard: unit client", line=line
        )
    if rules.release == "secure-sum":
        wanted = f"secure-sum of {rules.least_sum} nodes or noise"
    passed = rules.release is not None and (noised or rules.release == "trusted-code")
    return Finding(
        rule="release", passed=passed, found=found, wanted=wanted, line="" if passed else f'release = "{_least(noised)}"'
    )


def _least(noised: bool) -> str:
    return "noised" if noised else "trusted-code"


def _signed(rules: DataRules, plan: Plan, facts: Facts) -> Finding:
    signer = (facts.signature or "").partition(".")[2][:16]
    found = f"a signature by key {signer}" if signer else "no signature"
    if not rules.study_keys:
        return Finding(rule="study_keys", passed=True, found=found, wanted="none")
    from freehold import signing  # cryptography: only where there is something to verify

    try:
        passed = signing.is_signed(facts.digest or digest(plan), facts.signature, rules.study_keys)
        if not passed and signing.is_known(facts.signature, rules.study_keys):
            found += ", which is that of another plan, or damaged"
    except UsageError:
        passed = False
    wanted = f"a signature by one of {len(rules.study_keys)} keys"
    line = "" if passed else "study_keys = []  # or add the key of who signed it: the middle line of its file FILE.pub"
    return Finding(rule="study_keys", passed=passed, found=found, wanted=wanted, line=line)


def _privacy(rules: DataRules, plan: Plan, facts: Facts) -> Iterator[Finding]:
    said = plan.privacy
    ranks = {"none": 0, "record": 1, "client": 2}
    passed = ranks[said.unit] >= ranks[rules.unit]
    yield Finding(
        rule="unit",
        passed=passed,
        found=said.unit,
        wanted=f"{rules.unit} or more",
        line="" if passed else f'unit = "{said.unit}"',
    )
    epsilon = math.inf if said.unit == "none" or facts.epsilon is None else facts.epsilon
    told = "no promise" if said.unit == "none" else "not known" if facts.epsilon is None else f"{epsilon:.4g}"
    told += "" if facts.records is None else f" with {facts.records} training records"
    for name, cost in (("epsilon_per_study", epsilon), ("epsilon_total", facts.spent + epsilon)):
        most = getattr(rules, name)
        if facts.counted and facts.epsilon is None and said.unit != "none":
            wanted = "any" if most is None else f"at most {most:g}"
            yield Finding(rule=name, passed=True, found="the node's budget counts it before it trains", wanted=wanted)
            continue
        found = told if name == "epsilon_per_study" or math.isinf(cost) else f"{facts.spent:.4g} spent + {told}"
        yield _most(name, cost, most, found)
    yield _most("delta", 0.0 if said.unit == "none" else said.delta, rules.delta, f"{said.delta:g}")
    norm = math.inf if said.unit == "none" or said.max_norm is None else said.max_norm
    yield _most("most_clip", norm, rules.most_clip, "no bound" if math.isinf(norm) else f"max_norm {norm:g}")


def _amounts(rules: DataRules, plan: Plan, facts: Facts) -> Iterator[Finding]:
    size = round_bytes(plan)
    yield _most(
        "bytes_per_day",
        facts.sent_today + size,
        rules.bytes_per_day,
        f"{facts.sent_today} today + up to {size} a round",
    )
    planned = plan.round.quorum or plan.round.cohort or plan.round.least_nodes
    cohort = planned if facts.cohort is None else min(planned, facts.cohort)
    passed = cohort >= rules.smallest_cohort
    yield Finding(
        rule="smallest_cohort",
        passed=passed,
        found=f"{cohort} nodes",
        wanted=f"{rules.smallest_cohort} or more",
        line="" if passed else f"smallest_cohort = {max(cohort, 1)}",
    )
    yield Finding(
        rule="secure_aggregation",
        passed=not rules.secure_aggregation,
        found="no plan has it yet: it is not built",
        wanted="secure aggregation" if rules.secure_aggregation else "none",
        line="secure_aggregation = false" if rules.secure_aggregation else "",
    )


def _surroundings(rules: DataRules, plan: Plan, facts: Facts) -> Iterator[Finding]:
    hours = _hours(rules.hours, facts.local)
    open_ = hours.open(facts.now)
    yield Finding(
        rule="hours",
        passed=open_,
        found=time.strftime("%a %H:%M", facts.local(facts.now)).lower(),
        wanted=hours.text or "any time",
        line="" if open_ else 'hours = ""',
    )
    for name in ("memory", "cpus"):
        most = getattr(rules, name)
        passed = not most or facts.bounded == "group" or (facts.bounded == "processes" and (name == "memory" or most >= 1))
        yield Finding(
            rule=name,
            passed=passed,
            found=_HELD[facts.bounded][name],
            wanted=f"{most:g}" if most else "no limit",
            line="" if passed else f"{name} = 0",
        )
    least = max(rules.sandbox, "none" if plan.task.bundle is None else LEAST_FOR_BUNDLES, key=SANDBOXES.index)
    reached = SANDBOXES.index(facts.sandbox) >= SANDBOXES.index(least)
    lifts = plan.task.bundle is None or SANDBOXES.index(facts.sandbox) >= SANDBOXES.index(LEAST_FOR_BUNDLES)
    yield Finding(
        rule="sandbox",
        passed=reached,
        found=facts.sandbox,
        wanted=f"{least} or stronger",
        line="" if reached or not lifts else f'sandbox = "{facts.sandbox}"',
    )
    yield _columns(rules, facts)


@functools.lru_cache(maxsize=64)
def _hours(text: str, local: Callable[[float], time.struct_time]) -> Hours:
    """Made once: it looks at each minute of a week."""
    return Hours(text, local=local)


def _columns(rules: DataRules, facts: Facts) -> Finding:
    reads = "not known here" if facts.columns is None else ", ".join(facts.columns)
    if rules.columns is None:
        return Finding(rule="columns", passed=True, found=reads, wanted="any")
    wanted = ", ".join(rules.columns) or "none"
    lacking = [name for name in facts.columns or () if name not in rules.columns]
    if lacking or facts.columns is not None or facts.narrowed:
        line = f"columns = {json.dumps([*rules.columns, *lacking], ensure_ascii=False)}" if lacking else ""
        return Finding(rule="columns", passed=not lacking, found=reads, wanted=wanted, line=line)
    return Finding(rule="columns", passed=False, found="not withheld: the file is no CSV file", wanted=wanted)


def _most(name: str, found: float, most: float | None, told: str) -> Finding:
    passed = most is None or found <= most
    wanted = "no limit" if most is None else f"{most:g} at most" if isinstance(most, float) else f"{most} at most"
    line = ""
    if not passed:
        line = f"{name} = {'inf' if math.isinf(found) else found if isinstance(found, int) else repr(float(found))}"
    return Finding(rule=name, passed=passed, found=told, wanted=wanted, line=line)


def _list(key: str, before: tuple[str, ...], more: str) -> str:
    return f"{key} = {json.dumps([*before, more])}"


def contribution_bytes(spec: Contribution) -> int:
    """What a contribution takes at most as it travels uncompressed."""
    tensors = (math.prod(t.shape) * _SIZES[t.dtype] + _TENSOR_BYTES + 6 * len(t.name) for t in spec.tensors)
    return OVERHEAD_BYTES + sum(tensors)


def round_bytes(plan: Plan) -> int:
    """What leaves in one round of the run that sends most."""
    specs = [plan.contribution.tensors, *(c.tensors for c in plan.companions)]
    return max(contribution_bytes(Contribution(tensors=tensors)) for tensors in specs)
