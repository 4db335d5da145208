"""What a data owner decides: `freehold node pending|show|approve|deny`, and `freehold node policy check|new`."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freehold.cli.nodestate import NodeName, NodeState, node_state
from freehold.cli.places import AsJson
from freehold.errors import FreeholdError, NotJoined, PolicyRefused, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freehold.cli.decided import Decided
    from freehold.node.approvals import Approvals
    from freehold.plan import Plan
    from freehold.policy import DataRules, Facts, Policy, Verdict

policy = typer.Typer(no_args_is_help=True, help="The rules by which a node decides what may run.")

Wanted = Annotated[str, typer.Argument(metavar="DIGEST", help="Its first digits are enough, or the plan's name.")]


@policy.callback()
def _start() -> None:
    pass


def pending(
    name: NodeName = None,
    state: NodeState = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that the owner or a rule has decided.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the plans that wait for the owner."""
    from freehold.cli.decided import every

    folder = _node(name, state)
    if all_:
        _list_all(folder, as_json)
        return
    waiting = [each for each in every(folder) if each.state == "waits"]  # and no rule allows or denies it by now
    if as_json:
        told = [{"digest": e.digest, "name": e.plan.name, "task": e.plan.task.name, "since": e.since} for e in waiting]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.show import table

    lines = [["plan", "data", "digest", "waits since"]]
    lines += [[e.plan.name, e.plan.task.name, e.digest[:19], _time(e.since)] for e in waiting]
    table(lines, empty="No plan waits.")


def _list_all(folder: Path, as_json: bool) -> None:
    """Every plan that is kept, with what became of it and by whom."""
    from freehold.cli.decided import every

    found = every(folder)
    if as_json:
        told = [
            {"digest": e.digest, "name": e.plan.name, "task": e.plan.task.name, "state": e.state, "by": e.by, "since": e.since}
            for e in found
        ]
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    from freehold.cli.show import table

    lines = [["plan", "data", "digest", "state", "by", "since"]]
    lines += [[e.plan.name, e.plan.task.name, e.digest[:19], e.state, e.by or "-", _time(e.since)] for e in found]
    table(lines, empty="No plan has come yet.")


def show(digest: Wanted, name: NodeName = None, state: NodeState = None, as_json: AsJson = False) -> None:
    """Say in plain words what a plan would do, what the rules say, and what changed since the last approved one."""
    from freehold.cli.decided import find
    from freehold.node.approvals import Approvals
    from freehold.policy.decide import is_foreign
    from freehold.policy.words import difference, summary

    folder = _node(name, state)
    approvals = Approvals(folder)
    entry = find(folder, digest)
    identity, plan = entry.digest, entry.plan
    rules = _policy(folder, None)
    facts = _facts(folder, plan, entry.signature, rules)
    foreign = is_foreign(plan, facts.installed)
    words = summary(plan, columns=facts.columns, installed=not foreign, rules=_rules_of(rules, plan), files=_files(folder, plan))
    if facts.epsilon is not None:
        words.append(("ε", _promised(facts.epsilon, facts.records)))
    before = approvals.last_approved(plan.name, but=identity)
    changed = difference(before, plan) if before is not None else None
    code = code_changed(approvals, folder, plan, but=identity)
    verdict = _decided(rules, plan, facts)
    if as_json:
        told = {
            "digest": identity,
            "name": plan.name,
            "state": entry.state,
            "by": entry.by,
            "since": entry.since,
            "reason": entry.reason,
            "decided": entry.told(),
            "summary": dict(words),
            "changed": changed,
            "code_changed": code,
            **_as_dict(verdict),
        }
        sys.stdout.write(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return
    _say(f"{plan.name}  {identity}")
    by = {"": "", "owner": " by you", "rules": " by the rules"}[entry.by]
    _say(f"  {entry.state}{by} since {_time(entry.since)}{': ' + entry.reason if entry.reason else ''}")
    for line in _ruled(entry):
        _say(f"  {line}")
    for topic, sentence in words:
        _say(f"  {topic:<9} {sentence}")
    if changed is None:
        _say("  changed   no plan of this name was approved before")
    else:
        _say("  changed   against the plan of this name that was approved last:")
        for line in changed:
            _say(f"    {line}")
    for line in code or ():
        _say(f"  {line}")
    _explain(verdict)


def approve(digest: Wanted, name: NodeName = None, state: NodeState = None, as_json: AsJson = False) -> None:
    """Allow a plan that no rule covers, on this node; it takes part from the next round on. Limits of the policy still hold."""
    from freehold.cli.decided import find
    from freehold.node.approvals import Approvals

    folder = _node(name, state)
    approvals = Approvals(folder)
    entry = find(folder, digest)
    identity, plan = approvals.keep(entry.plan, entry.signature), entry.plan
    approvals.say(identity, "approved")
    rules = _policy(folder, None)
    verdict = _decided(rules, plan, _facts(folder, plan, entry.signature, rules))
    if as_json:
        sys.stdout.write(json.dumps({"digest": identity, "name": plan.name, "state": "approved", **_as_dict(verdict)}) + "\n")
    else:
        _say(f"Approved: {plan.name}  {identity}")
    if verdict.says != "allowed":
        if not as_json:
            _explain(verdict)
        raise PolicyRefused(f"It is approved, but a rule of the policy still says no to {plan.name}.", hint="See above.")


def deny(
    digest: Wanted,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For yourself; no coordinator sees it.")] = "",
    name: NodeName = None,
    state: NodeState = None,
    as_json: AsJson = False,
) -> None:
    """Refuse a plan on this node, whatever the policy says; `freehold node approve` takes it back."""
    from freehold.cli.decided import find
    from freehold.node.approvals import Approvals

    if len(reason) > 2000:
        raise UsageError("The reason has more than 2000 characters.", hint="Say it in fewer.")
    folder = _node(name, state)
    entry = find(folder, digest)
    identity, called = Approvals(folder).keep(entry.plan, entry.signature), entry.plan.name
    Approvals(folder).say(identity, "denied", reason)
    if as_json:
        sys.stdout.write(json.dumps({"digest": identity, "name": called, "state": "denied", "reason": reason}) + "\n")
    else:
        _say(f"Denied: {called}  {identity}")


@policy.command()
def check(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan's file; its signature lies beside it as PLAN.sig.")],
    file: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Another policy than the node's own.", exists=False)
    ] = None,
    records: Annotated[
        int | None,
        typer.Option(
            "--records",
            min=1,
            metavar="N",
            help="Training records, on which ε per record rests; counted if not given.",
        ),
    ] = None,
    name: NodeName = None,
    state: NodeState = None,
    as_json: AsJson = False,
) -> None:
    """Say rule by rule what the policy says to a plan. Exit code 0: allowed; 1: it waits, or is denied."""
    from freehold.plan import load_plan

    loaded = load_plan(plan)
    folder = None if name is None and state is None and file is not None else _node(name, state)
    signature = _signature(plan.with_name(plan.name + ".sig"))
    rules = _policy(folder, file)
    facts = _facts(folder, loaded, signature, rules, records)
    verdict = _decided(rules, loaded, facts)
    if as_json:
        told = {"name": loaded.name, "epsilon": facts.epsilon, "spent": facts.spent, "records": facts.records}
        sys.stdout.write(json.dumps({**told, **_as_dict(verdict)}, indent=1, ensure_ascii=False) + "\n")
    else:
        _explain(verdict)
    if verdict.says != "allowed":
        raise typer.Exit(1)


@policy.command()
def new(
    data: Annotated[str, typer.Argument(metavar="NAME", help="The data set, as --data and plans call it.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where it goes; standard output if not given.")
    ] = None,
    noised: Annotated[bool, typer.Option("--noised", help="Only plans with differential privacy.")] = False,
) -> None:
    """Write a policy for a data set, with every key explained, to be edited. No file is replaced."""
    from freehold.policy import new_policy, parse_policy

    text = new_policy(data, release="noised" if noised else "trusted-code")
    parse_policy(text)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.", hint="Give another file; none is replaced.") from None
    _say(f"{output}: read it, and change what should be otherwise.")


def _signature(path: Path) -> str | None:
    """What is in the file beside a plan; None where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"{path} cannot be read: {why}.", hint="`freehold study sign` writes it; or move it away.") from None


def _node(name: str | None, state: Path | None) -> Path:
    """The node's folder; one that is not there is a name that was mistyped, and not a node for which nothing waits."""
    folder = node_state(name, state)
    if not folder.is_dir():
        raise NotJoined(f"There is no node in {folder}.", hint="Look at --name or --state; `freehold node start` makes a node.")
    return folder


def _policy(folder: Path | None, file: Path | None) -> Policy:
    from freehold.policy import load_policy

    if file is not None:
        if not file.is_file():
            raise UsageError(f"There is no policy {file}.", hint="`freehold node policy new NAME --output FILE` writes one.")
        return load_policy(file)
    assert folder is not None
    from freehold.node.admission import rules_file

    return load_policy(rules_file(folder))


def _facts(folder: Path | None, plan: Plan, signature: str | None, rules: Policy, records: int | None = None) -> Facts:
    from freehold.cli.cost import cost_of
    from freehold.node.approvals import Approvals
    from freehold.plan import digest
    from freehold.policy import Facts
    from freehold.sandbox.probe import probe

    identity = digest(plan)
    cost = cost_of(folder, plan, _rules_of(rules, plan), records)
    return Facts(
        installed=frozenset(point.name for point in entry_points(group="freehold.tasks")),
        now=time.time(),
        signature=signature,
        digest=identity,
        columns=_columns(plan),
        approval="" if folder is None else Approvals(folder).state_of(identity),
        epsilon=cost.epsilon,
        spent=cost.spent,
        records=cost.records,
        counted=True,
        sandbox=(level := probe(None).level),
        bounded="" if level == "none" else "processes",  # a control group is the running node's alone
    )


def _columns(plan: Plan) -> tuple[str, ...] | None:
    """What the task reads, where it is installed and says so; code that comes with a plan is not run to find out."""
    if plan.task.bundle is not None:
        return None
    from freehold.tasks import schema_of, task_definition

    try:
        schema = schema_of(task_definition(plan.task.name), plan)
    except FreeholdError:
        return None
    return (*schema.names, schema.target.name)


def _files(folder: Path, plan: Plan) -> Mapping[str, str] | None:
    """The code that the plan names, as the node keeps it; None: the plan names none, or it has not come yet."""
    from freehold.node.bundles import Bundles

    return None if plan.task.bundle is None else Bundles(folder).files(plan.task.bundle)


def code_changed(approvals: Approvals, folder: Path, plan: Plan, *, but: str) -> list[str] | None:
    """What differs from the code for this data that was approved last, or all of it; None for an installed task."""
    from freehold.plan.bundle import changes

    if plan.task.bundle is None:
        return None
    files = _files(folder, plan)
    if files is None:
        return ["the code has not come to this node yet"]
    before = approvals.last_bundled(plan.task.name, but=but)
    known = None if before is None else _files(folder, before)
    if before is None or known is None:
        return ["code, none of which was approved before for this data:", *changes({}, files)]
    if before.task.bundle == plan.task.bundle:
        return [f"code as in {before.name}, which you approved"]
    return [f"code, against that of {before.name}, which was approved last:", *changes(known, files)]


def _rules_of(rules: Policy, plan: Plan) -> DataRules | None:
    return rules.data.get(plan.task.name)


def _decided(rules: Policy, plan: Plan, facts: Facts) -> Verdict:
    from freehold.policy import decide

    return decide(rules, plan, facts)


def _explain(verdict: Verdict) -> None:
    """Every rule, then the lines that would allow what does not pass."""
    width = max(len(each.rule) for each in verdict.findings)
    _say(f"{verdict.says}, by the rules of {verdict.data}:")
    for each in verdict.findings:
        _say(f"  {'ok' if each.passed else 'NO':<3} {each.rule:<{width}}  found: {each.found}; wanted: {each.wanted}")
    lines = [each.line for each in verdict.failed if each.line]
    if lines and verdict.failed[0].rule != "owner":
        whole = verdict.failed[0].rule == "data"
        _say("What would allow it:" if whole else f"What would allow it, in [data.{verdict.data}] in place of what is there:")
        for line in "\n".join(lines).split("\n"):
            _say(f"  {line}")
    for each in verdict.failed:
        if not each.line:
            _say(f"  {each.rule}: no line of the policy can allow it, only another plan or `freehold node approve`.")


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    rules = [{"rule": e.rule, "passed": e.passed, "found": e.found, "wanted": e.wanted, "line": e.line} for e in verdict.findings]
    return {"verdict": verdict.says, "data": verdict.data, "rules": rules}


def _promised(epsilon: float, records: int | None) -> str:
    rests = "" if records is None else f", with {records} training records here"
    return f"at most {epsilon:.3g} for a run to the end, companions and repeats included{rests}"


def _ruled(entry: Decided) -> list[str]:
    """What the rules decided when the plan was asked for, which may differ from what they say now."""
    ruling = entry.ruling
    if ruling is None:
        return []
    failed = [each for each in ruling.rules if not each.passed]
    said = "; ".join(f"{each.rule}: found {each.found}, wanted {each.wanted}" for each in failed) or "every rule passed"
    under = f"policy {ruling.policy[:12]}" if ruling.policy else "no policy"
    lines = [f"ruled     {ruling.says} at {_time(ruling.decided)}, under {under}: {said}"]
    if ruling.allowed is not None:
        lines.append(f"          allowed until {_time(ruling.allowed)}: look in the ledger for what left")
    return lines


def _time(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _say(text: str) -> None:
    from freehold.cli.console import visible

    sys.stdout.write(visible(text) + "\n")
