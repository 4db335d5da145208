"""A study that a federation ran, as the same comparison that the simulator makes: from sums alone, since nothing else left."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec

from freehold.errors import UsageError, WireError
from freehold.plan import Compression, Plan, RoundPolicy, parse, runs_of
from freehold.plan.bundle import digest_of, unpack
from freehold.report import ClientFacts, Comparison, Row, SeedResult
from freehold.report.wording import counted
from freehold.study.compare import SELECT, versions
from freehold.study.traveling import said, variant
from freehold.study.trials import USUAL, plan_for, title_of
from freehold.tasks import TaskDefinition, task_definition
from freehold.tasks.bundled import described, imported
from freehold.wire.admin import Results
from freehold.wire.messages import DIFFERING, Measured, Measures, decode

ALONE = "local"

KEPT = "This plan promises an ε, and no noise is in what nodes measure, so that stays with them: there is nothing to report."

Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("validation", "test")

Figures = dict[str, float]
Told = Mapping[str, Mapping[str, Measures]]
"""Run -> node -> what it measured."""


def federated_plan(
    task: str,
    algorithm: str,
    *,
    companions: Sequence[str],
    name: str | None = None,
    rounds: int | None = None,
    repeats: int = 1,
    least_nodes: int = 1,
    compression: Compression = "none",
    bundle: bytes | None = None,
) -> Plan:
    """A plan of a task with the task's own settings; what may leave a node is still to be listed in it.

    `bundle`: code that comes with the plan and defines the task; it is imported here.
    """
    definition = task_definition(task) if bundle is None else imported(unpack(bundle, digest_of(bundle)))
    if definition.name != task:
        raise UsageError(f"The bundle defines the task {definition.name}, not {task}.", hint=f"Name it: {definition.name}.")
    plan = plan_for(definition, algorithm, companions=[c for c in companions if c != variant(algorithm)[0]])
    if bundle is not None:
        plan = msgspec.structs.replace(plan, task=msgspec.structs.replace(plan.task, bundle=digest_of(bundle)))
    training = plan.training if rounds is None else msgspec.structs.replace(plan.training, rounds=rounds)
    return msgspec.structs.replace(
        plan,
        name=name or plan.name,
        training=training,
        repeats=repeats,
        round=RoundPolicy(least_nodes=least_nodes),
        contribution=msgspec.structs.replace(plan.contribution, compression=compression),
    )


def comparison_of(results: Results, *, command: str, notes: Sequence[str] = ()) -> Comparison:
    """Alone, each companion, the plan's algorithm, and what each node would serve; raises UsageError before anything is measured.

    Nodes tell sums over their validation and test examples, and no sum over fewer than five. How many they train on follows
    from the task's split.
    """
    plan = parse(results.plan)
    if plan.privacy.unit != "none":
        raise UsageError(KEPT, hint="Each node's own page shows what it measured; `freehold simulate --epsilon` what to expect.")
    definition = described(plan)
    told = _told(results)
    nodes = sorted({node for by_node in told.values() for node in by_node})
    if not nodes:
        raise UsageError("Nothing of this study is measured yet.", hint="Wait until its first runs are finished.")
    repeats = sorted({run.repeat for run in runs_of(plan) if told.get(run.id)})
    kinds = {run.algorithm.name: run.algorithm for run in runs_of(plan) if run.algorithm.name != ALONE}
    ordered = [*(n for n in USUAL if n in kinds), *(n for n in kinds if n not in USUAL)]
    own = {name: _results(plan, definition, told, name, nodes, repeats, results.cycle) for name in ordered}
    alone = tuple(_alone(plan, definition, told, nodes, repeat, results.cycle) for repeat in repeats)
    lr = {k: v for k, v in plan.algorithm.hyperparameters.items() if k == "lr" and not isinstance(v, bool)}
    rows = [Row(name=ALONE, title=title_of(ALONE), algorithm=ALONE, hyperparameters=lr, results=alone)]
    for name in ordered:
        rows.append(
            Row(
                name=name,
                title=title_of(name),
                algorithm=name,
                hyperparameters=dict(kinds[name].hyperparameters),
                results=own[name],
                sent_bytes=_sent(results, plan, name, nodes, repeats),
                seconds=sum(r.seconds for r in results.rounds if r.run in _runs(plan, name)),
            )
        )
    rows += _select(plan, told, own, alone, nodes, repeats)
    facts = tuple(_facts(definition, told, node) for node in nodes)
    return Comparison(
        study=plan.name,
        title=f"{definition.title}, {counted(len(nodes), definition.noun)} took part",
        problem="classification" if definition.metric == "accuracy" else "regression",
        metric=definition.metric,
        higher_is_better=True,
        clients=facts,
        rows=tuple(rows),
        test_share=sum(f.test for f in facts) / max(1, sum(f.train for f in facts)),
        seeds=tuple(plan.training.seed + repeat for repeat in repeats),
        splits="repeated",
        command=command,
        versions=versions(),
        notes=(
            *notes,
            *said(plan.contribution),
            "Sizes of training sets follow from the task's split rule: nodes tell sums over the other examples only.",
        ),
        noun=definition.noun,
        asked=plan.algorithm.name,
    )


def mean_figure(results: Results) -> float | None:
    """The task's metric on the test examples, of the plan's algorithm: the mean over nodes and repeats that told it."""
    plan = parse(results.plan)
    definition = described(plan)
    own = set(_runs(plan, plan.algorithm.name))
    told = [message for run, by_node in _told(results).items() if run in own for message in by_node.values()]
    known = [figure for m in told if math.isfinite(figure := _figures(definition, m.splits.get("test"))[definition.metric])]
    return sum(known) / len(known) if known else None


def _told(results: Results) -> dict[str, dict[str, Measures]]:
    found: dict[str, dict[str, Measures]] = {}
    for run, by_node in results.measures.items():
        for node, body in by_node.items():
            try:
                found.setdefault(run, {})[node] = decode(body.encode(), Measures)
            except WireError:
                continue  # the node declined to measure, and said why
    return found


def _runs(plan: Plan, algorithm: str, repeat: int | None = None) -> list[str]:
    return [r.id for r in runs_of(plan) if r.algorithm.name == algorithm and repeat in (None, r.repeat)]


def _results(
    plan: Plan, definition: TaskDefinition, told: Told, algorithm: str, nodes: Sequence[str], repeats: Sequence[int], cycle: int
) -> tuple[SeedResult, ...]:
    found = []
    for repeat in repeats:
        (run,) = _runs(plan, algorithm, repeat)
        messages = told.get(run, {})
        said = {node: message.splits for node, message in messages.items()}
        errors = {node: _paired_se(message.splits.get("test"), message.alone.get("test")) for node, message in messages.items()}
        sure = {node: error for node, error in errors.items() if error is not None}
        found.append(replace(_result(plan, definition, said, nodes, repeat, cycle), paired_se=sure))
    return tuple(found)


def _paired_se(own: Measured | None, alone: Measured | None) -> float | None:
    """The standard error of the difference in accuracy over the same examples; None if it was not told."""
    if own is None or alone is None or own.examples < 2 or not {DIFFERING, "correct"} <= own.sums.keys():
        return None
    share, difference = own.sums[DIFFERING] / own.examples, own.sums["correct"] - alone.sums.get("correct", math.nan)
    variance = share - (difference / own.examples) ** 2
    return math.sqrt(max(variance, 0.0) / (own.examples - 1)) if math.isfinite(variance) else None


def _alone(plan: Plan, definition: TaskDefinition, told: Told, nodes: Sequence[str], repeat: int, cycle: int) -> SeedResult:
    """Training alone is the same beside each run of a repeat; the first that tells it counts."""
    runs = [run.id for run in runs_of(plan) if run.repeat == repeat]
    said: dict[str, Mapping[Split, Measured]] = {
        n: next((m.alone for run in runs if (m := told.get(run, {}).get(n)) and m.alone), {}) for n in nodes
    }
    return _result(plan, definition, said, nodes, repeat, cycle)


def _result(
    plan: Plan,
    definition: TaskDefinition,
    said: Mapping[str, Mapping[Split, Measured]],
    nodes: Sequence[str],
    repeat: int,
    cycle: int,
) -> SeedResult:
    """Figures of the test examples, and the metric on the validation examples after the last round, where nodes told it."""
    parts = {split: {node: _figures(definition, said.get(node, {}).get(split)) for node in nodes} for split in SPLITS}
    known = [value for figures in parts["validation"].values() if math.isfinite(value := figures[definition.metric])]
    return SeedResult(
        seed=plan.training.seed + repeat,
        figures=parts["test"],
        curve=(((cycle + 1) * plan.training.rounds, sum(known) / len(known)),) if known else (),
    )


def _select(
    plan: Plan,
    told: Told,
    own: Mapping[str, Sequence[SeedResult]],
    alone: Sequence[SeedResult],
    nodes: Sequence[str],
    repeats: Sequence[int],
) -> list[Row]:
    """What each node would serve, where every one of them could choose."""
    if "fedavg" not in own:
        return []
    found = []
    for index, repeat in enumerate(repeats):
        rows = {ALONE: alone[index], "shared": own["fedavg"][index], "personal": own[plan.algorithm.name][index]}
        choice = {
            node: m.served
            for run in runs_of(plan)
            if run.repeat == repeat
            for node in nodes
            if (m := told.get(run.id, {}).get(node)) and m.served
        }
        if set(choice) != set(nodes):
            return []
        figures = {node: rows[kind].figures[node] for node, kind in choice.items()}
        errors = {n: 0.0 if kind == ALONE else rows[kind].paired_se.get(n) for n, kind in choice.items()}
        sure = {node: error for node, error in errors.items() if error is not None}
        found.append(SeedResult(seed=plan.training.seed + repeat, figures=figures, served=choice, paired_se=sure))
    return [Row(name=SELECT, title="What each would serve", algorithm=SELECT, results=tuple(found))]


def _figures(definition: TaskDefinition, measured: Measured | None) -> Figures:
    if definition.metric == "accuracy":
        return _class_figures(definition, measured.sums if measured else {})
    return _value_figures(measured.sums if measured else {})


def _class_figures(definition: TaskDefinition, sums: Mapping[str, float]) -> Figures:
    count = sums.get("count", 0.0)
    if not count:
        return dict.fromkeys(("accuracy", "balanced_accuracy", "log_loss"), math.nan)
    seen, right = _by_class(sums, "count_by_class"), _by_class(sums, "correct_by_class")
    complete = sum(seen.values()) == count and len(seen) > 1  # a class of fewer than five is not told
    return {
        "accuracy": sums["correct"] / count,
        "balanced_accuracy": sum(right[k] / seen[k] for k in seen) / len(seen) if complete else math.nan,
        "log_loss": sums["loss"] / count,
    }


def _value_figures(sums: Mapping[str, float]) -> Figures:
    """In units of the target's standard deviation on the node, which does not leave it."""
    count = sums.get("count", 0.0)
    if not count:
        return dict.fromkeys(("r2", "rmse", "mae"), math.nan)
    spread = sums["target_squared"] - sums["target"] ** 2 / count
    return {
        "r2": 1 - sums["squared_error"] / spread if spread > 1e-12 else math.nan,
        "rmse": math.sqrt(sums["squared_error"] / count),
        "mae": sums["absolute_error"] / count,
    }


def _by_class(sums: Mapping[str, float], name: str) -> dict[int, float]:
    return {int(key.partition("/")[2]): value for key, value in sums.items() if key.startswith(f"{name}/") and value >= 0}


def _facts(definition: TaskDefinition, told: Told, node: str) -> ClientFacts:
    splits = next(by_node[node].splits for by_node in told.values() if node in by_node)
    sizes = {name: splits[name].examples if name in splits else 0 for name in SPLITS}
    rule = definition.split
    train = round(sizes["test"] * (1 - rule.test - rule.validation) / rule.test) if rule.test else 0
    count: defaultdict[int, float] = defaultdict(float)
    for measured in splits.values():
        for kind, examples in _by_class(measured.sums, "count_by_class").items():
            count[kind] += examples
    classes = definition.schema.target.classes if definition.schema else ()
    complete = classes and sum(count.values()) == sum(sizes.values())
    return ClientFacts(
        name=node,
        examples=train + sum(sizes.values()),
        train=train,
        validation=sizes["validation"],
        test=sizes["test"],
        labels={name: count[k] / sum(sizes.values()) for k, name in enumerate(classes)} if complete else {},
        estimated=True,
    )


def _sent(results: Results, plan: Plan, algorithm: str, nodes: Sequence[str], repeats: Sequence[int]) -> int:
    """Bytes that a node sends in one run, on average over nodes and repeats."""
    runs = set(_runs(plan, algorithm))
    return round(sum(r.bytes for r in results.rounds if r.run in runs) / (len(nodes) * len(repeats)))
