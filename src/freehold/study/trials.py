"""From a task and the names of algorithms to plans: one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from freehold.algorithms import build_algorithm
from freehold.core import Task, algorithm_entry, algorithm_names
from freehold.errors import NotPrivate, TaskError
from freehold.plan import AlgorithmRef, Companion, Contribution, Plan, Privacy, Scalar, TaskRef, Training
from freehold.study.settings import Trial
from freehold.study.traveling import variant
from freehold.tasks import TaskDefinition
from freehold.tasks.flamby import PUBLISHED
from freehold.tasks.flamby import TITLES as PUBLISHED_TITLES

USUAL = ("local", "fedavg", "fedavg-finetuned", "fedavg-intercept", "ditto")
"""The rows that every comparison has, first."""

TITLES = {
    "local": "Alone",
    "fedavg": "FedAvg",
    "fedavg-finetuned": "FedAvg + finetuning",
    "fedavg-intercept": "FedAvg + local intercept",
    "ditto": "Ditto",
    "apfl": "APFL",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedala": "FedALA",
    "fedbabu": "FedBABU",
    "fedbn": "FedBN",
    "feddbe": "FedDBE",
    "fedper": "FedPer",
    "fedprox": "FedProx",
    "fedproto": "FedProto",
    "fedrep": "FedRep",
    "fedrod": "FedRoD",
    "fedyogi": "FedYogi",
    "ifca": "IFCA",
    "knn-per": "kNN-Per",
    "lg-fedavg": "LG-FedAvg",
    "per-fedavg": "Per-FedAvg",
    "per-fedavg-hf": "Per-FedAvg (HF)",
    "pfedme": "pFedMe",
    "scaffold": "SCAFFOLD",
    "scaffold-uniform": "SCAFFOLD (uniform)",
}

Settings = Mapping[str, Mapping[str, Scalar]]


def title_of(algorithm: str) -> str:
    """What a report calls an algorithm, or one whose contributions are rounded."""
    name, plus, dtype = algorithm.partition("+")
    return TITLES.get(name, name) + (f", {dtype}" if plus else "")


def plan_for(
    definition: TaskDefinition,
    algorithm: str,
    *,
    hyperparameters: Settings | None = None,
    training: Training | None = None,
    options: Mapping[str, Scalar] | None = None,
    companions: Sequence[str] = (),
) -> Plan:
    """The plan of an algorithm on a task: the task's settings, changed by `hyperparameters` (algorithm -> name -> value).

    "fedavg+bfloat16" is FedAvg in a plan that has contributions rounded to bfloat16.
    """
    algorithm, dtype = variant(algorithm)
    return Plan(
        name=f"{definition.name}-{algorithm}{f'-{dtype}' if dtype else ''}",
        task=TaskRef(name=definition.name, version=definition.version, options=dict(options or {})),
        algorithm=_reference(definition, algorithm, hyperparameters or {}),
        training=training or definition.training,
        adaptation=definition.adaptation,
        contribution=Contribution(dtype=dtype),
        companions=tuple(_companion(_reference(definition, name, hyperparameters or {})) for name in companions),
        min_examples=definition.min_examples,
        clients=definition.clients,
    )


def trials_for(
    definition: TaskDefinition,
    algorithms: Sequence[str] | None = None,
    *,
    hyperparameters: Settings | None = None,
    training: Training | None = None,
    options: Mapping[str, Scalar] | None = None,
) -> tuple[Trial, ...]:
    """A row per algorithm, the usual ones first; all installed ones by default."""
    names = algorithms if algorithms is not None else algorithm_names()
    places = {name: place for place, name in enumerate(USUAL)}
    ordered = sorted(names, key=lambda name: places.get(variant(name)[0], len(places)))
    return tuple(
        Trial(
            name=n,
            title=title_of(n),
            plan=plan_for(definition, n, hyperparameters=hyperparameters, training=training, options=options),
        )
        for n in ordered
    )


def trials_of(plan: Plan) -> tuple[Trial, ...]:
    """The rows of a plan: its companions, then its algorithm."""
    # The contribution spec is the algorithm's; what companions send is not part of it.
    beside = msgspec.structs.replace(plan, contribution=msgspec.structs.replace(plan.contribution, tensors=()), companions=())
    # Of what is trained alone nothing leaves, so it needs no noise.
    clear = msgspec.structs.replace(beside, privacy=Privacy())
    others = [AlgorithmRef(name=c.name, hyperparameters=c.hyperparameters, wrappers=c.wrappers) for c in plan.companions]
    plans = [
        msgspec.structs.replace(clear if c.name == "local" else beside, algorithm=c)
        for c in others
        if c.name != plan.algorithm.name
    ]
    plans.append(msgspec.structs.replace(plan, companions=()))
    return tuple(Trial(name=p.algorithm.name, title=title_of(p.algorithm.name), plan=p, required=p is plans[-1]) for p in plans)


def repeated(plan: Plan, seeds: int) -> Plan:
    """The plan, run with this many seeds."""
    return msgspec.structs.replace(plan, repeats=seeds)


def flamby_trials(definition: TaskDefinition) -> tuple[Trial, ...]:
    """The rows of the published tables."""
    return tuple(
        Trial(
            name=name,
            title=PUBLISHED_TITLES.get(name, name),
            plan=plan_for(definition, algorithm, hyperparameters={algorithm: hyper}, training=training),
            pooled=name == "Pooled",
            published=mean,
            published_std=std if std == std else None,
        )
        for name, (algorithm, hyper, training, mean, std) in PUBLISHED.items()
    )


def fitting(trials: Sequence[Trial], task: Task) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """The rows that this task allows, and why the others are left out; wrong hyper-parameters raise here, before any work."""
    kept, notes = [], []
    for trial in trials:
        try:
            build_algorithm(task, trial.plan.algorithm, trial.plan.contribution.dtype)
        except (TaskError, NotPrivate) as error:
            notes.append(f"{trial.name} is left out: {error.message}")
        else:
            kept.append(trial)
    return tuple(kept), tuple(notes)


def _companion(reference: AlgorithmRef) -> Companion:
    return Companion(name=reference.name, hyperparameters=reference.hyperparameters, wrappers=reference.wrappers)


def _reference(definition: TaskDefinition, algorithm: str, changed: Settings) -> AlgorithmRef:
    known = algorithm_entry(algorithm).hyperparameters
    common = {k: v for k, v in changed.get("*", {}).items() if k in known}
    own = {**definition.settings(algorithm, known), **common, **changed.get(algorithm, {})}
    return AlgorithmRef(name=algorithm, hyperparameters=own)
