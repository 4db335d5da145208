"""From a plan and data to the learning problem: the same on a simulating machine, on a node and on a coordinator."""

from __future__ import annotations

from dataclasses import replace

from freehold.core import NoisedSum, Privacy, Task, private
from freehold.data import Population, Prepared, Schema, parse_schema, prepare, split
from freehold.errors import PlanError
from freehold.plan import Plan
from freehold.tasks.definition import TaskDefinition, task_digest, task_names


def build_task(
    definition: TaskDefinition,
    prepared: Prepared,
    plan: Plan,
    seed: int,
    *,
    noised_sum: NoisedSum | None = None,
) -> Task:
    """The learning problem of a plan, under its privacy; PlanError where the plan is about another task than `definition`.

    Noise per client is not the task's: a guard adds it to what leaves, or the simulator in its place. `noised_sum`: how
    record-level noise is drawn; None: reproducibly, for a simulation.
    """
    _check_task(definition, plan)
    task = definition.build(prepared, seed)
    promised = plan.privacy
    if promised.max_norm is None or promised.noise_multiplier is None or promised.expected_batch is None:
        return task
    return private(
        task,
        Privacy(
            max_norm=promised.max_norm,
            noise_multiplier=promised.noise_multiplier,
            expected_batch=promised.expected_batch,
            noised_sum=noised_sum,
        ),
    )


def under(definition: TaskDefinition, plan: Plan) -> TaskDefinition:
    """The same use case, with splits and features that rest on no other record where the plan promises privacy for each.

    A clip bounds what a record does to a step through its own gradient. Through a mean that all are standardized by, or a split
    that heeds classes, groups or times, it would change the gradients of others too, and no noise is made for that.
    """
    if plan.privacy.unit != "record":
        return definition
    if definition.metric != "accuracy":
        raise PlanError(
            "A number is to be predicted; record-level privacy would need a scale for it that rests on no record, which is not "
            "built.",
            hint='Predict classes, or say privacy.unit = "client".',
        )
    rule = replace(definition.split, stratify=False, group=False, time=False)
    return replace(definition, split=rule, statistics="none" if definition.statistics == "none" else "ranges")


def _check_task(definition: TaskDefinition, plan: Plan) -> None:
    """Raise PlanError unless the plan's task, its version and its digest are those of `definition`."""
    said = plan.task
    if (said.name, said.version) != (definition.name, definition.version):
        raise PlanError(
            f"The plan is about version {said.version} of the task {said.name}; installed is version {definition.version} "
            f"of {definition.name}.",
            hint="Install the version that the plan names, or write the plan anew.",
        )
    if not said.digest:  # of a bundle it was checked before its code was imported
        return
    if definition.name not in task_names():
        raise PlanError(
            f"The plan pins the task {said.name}, which is not installed as a package, so its digest cannot be checked.",
            hint="Leave task.digest out, or install the task.",
        )
    if said.digest != (found := task_digest(definition.name)):
        raise PlanError(
            f"task.digest is {said.digest}, but the installed file that defines {said.name} has {found}.",
            hint="Install the code that the plan pins, or have the plan signed and approved with the new digest.",
        )


def schema_of(definition: TaskDefinition, plan: Plan) -> Schema:
    """The columns that a node's data has to have: the task's, or those in the plan's `task.options.schema`."""
    said = plan.task.options.get("schema")
    if definition.schema is not None:
        return definition.schema
    if isinstance(said, str):
        return parse_schema(said)
    raise PlanError(
        f"The task {definition.name} has no schema, and the plan brings none, so nodes cannot know which columns are meant.",
        hint="Put the schema's TOML text into task.options.schema; `freehold data schema` writes one.",
    )


def prepare_for(definition: TaskDefinition, plan: Plan, population: Population, *, seed: int) -> Prepared:
    """The tensors of clients that never see each other's data: split by (seed, client), standardized by their own rows.

    Raises PlanError for a target that is a number: one scale for all would need sums over all clients first.
    """
    definition = under(definition, plan)
    if not population.classes:
        raise PlanError(
            "A number is to be predicted; on a federation its scale would have to be agreed on first, which is not built.",
            hint="Simulate it, or predict classes.",
        )
    return prepare(
        population,
        split(population, definition.split, seed=seed),
        min_examples=plan.min_examples,
        kind="silos",
        statistics="client" if definition.statistics == "federated" else definition.statistics,
    )
