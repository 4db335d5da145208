"""A plan in plain words, for the owner who has to approve it, and what changed against another one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from freehold.plan import Contribution, Plan, dumps
from freehold.plan.bundle import imported
from freehold.policy.decide import contribution_bytes
from freehold.policy.promises import NOTHING
from freehold.policy.tables import DataRules

MOST_NAMES = 8
"""Tensors and columns named one by one; of more, how many there are."""


def summary(
    plan: Plan,
    *,
    columns: Sequence[str] | None,
    installed: bool,
    rules: DataRules | None,
    files: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """(topic, sentence) of what a plan would do.

    `rules`: those of the data set, if there are some. `files`: path -> text of the code that comes with the plan.
    """
    share: str = "never" if rules is None else rules.share_benefit
    if rules is not None and share != "never" and not installed and plan.task.bundle not in rules.trusted_code:
        share = "foreign"
    told = {
        "never": "do not leave: share_benefit is never",
        "foreign": "do not leave: they have no noise, and the owner has not said that this code is trusted",
        "binned": "leave rounded: share_benefit is binned",
        "named": "leave as they are: share_benefit is named",
    }[share]
    return [
        ("data", f"{plan.task.name}: {_columns(columns)}"),
        ("code", _code(plan, installed, files)),
        ("does", _work(plan)),
        ("leaves", _leaving(plan)),
        ("measures", f"sums over test and validation examples; they {told}"),
        ("release", _release(plan)),
        ("asks", f"{_asked(plan)}; a coordinator may run the plan again on a schedule, which no plan says"),
    ]


def difference(before: Plan, after: Plan) -> list[str]:
    """The lines of the canonical text that differ, as a unified diff without its head; [] for equal plans."""
    lines = difflib.unified_diff(dumps(before).splitlines(), dumps(after).splitlines(), lineterm="", n=1)
    return [line for line in lines if not line.startswith(("---", "+++"))]


def _columns(columns: Sequence[str] | None) -> str:
    if columns is None:
        return "which columns it reads is not known here"
    return f"{len(columns)} columns, {_some(columns)}"


def _code(plan: Plan, installed: bool, files: Mapping[str, str] | None) -> str:
    if installed:
        return f"the task {plan.task.name}, version {plan.task.version}, as it is installed on this node"
    if plan.task.bundle is not None:
        told = f"code that comes with the plan, {plan.task.bundle}; it runs in the sandbox only"
        if files is None:
            return told
        lines = sum(text.count("\n") for text in files.values())
        return f"{told}; {len(files)} files with {lines} lines, which import {_some(imported(files))}"
    return f"foreign code, {plan.task.digest or 'not pinned by a digest'}, which is not installed on this node"


def _work(plan: Plan) -> str:
    work = plan.training
    amount = f"{work.epochs} passes over the data" if work.epochs is not None else f"{work.steps} steps"
    told = f"trains {plan.algorithm.name} for {work.rounds} rounds of {amount}"
    if plan.companions:
        told += f"; to compare, also {', '.join(each.name for each in plan.companions)}"
    return told + (f"; all of it {plan.repeats} times with other splits" if plan.repeats > 1 else "")


def _leaving(plan: Plan) -> str:
    main = plan.contribution
    numbers = sum(math.prod(each.shape) for each in main.tensors)
    sent = [plan.contribution.tensors, *(each.tensors for each in plan.companions)]
    total = sum(contribution_bytes(Contribution(tensors=tensors)) for tensors in sent)
    total *= plan.training.rounds * plan.repeats
    runs = (1 + len(plan.companions)) * plan.repeats
    names = _some([each.name for each in main.tensors])
    return (
        f"each round up to {size(contribution_bytes(main))}: {numbers} numbers in {len(main.tensors)} tensors, {names}; "
        f"{plan.training.rounds} rounds in {runs} {'run' if runs == 1 else 'runs'}, {size(total)} in all at most"
    )


def _release(plan: Plan) -> str:
    said = plan.privacy
    if said.unit == "none":
        return f"trusted-code: {NOTHING}"
    who = "by the guard, whatever the code does" if said.unit == "client" else "in the trainer, so its code is trusted"
    return (
        f"noised, unit {said.unit}: clipped to {said.max_norm:g}, noise multiplier {said.noise_multiplier:g}, "
        f"delta {said.delta:g}; {who}"
    )


def _asked(plan: Plan) -> str:
    policy = plan.round
    cohort = "all nodes" if policy.cohort is None else f"{policy.cohort} nodes"
    return f"{cohort} a round, {policy.least_nodes} or more must have joined"


def _some(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMES:
        return ", ".join(names) or "none"
    return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
