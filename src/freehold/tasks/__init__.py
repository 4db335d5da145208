"""The use cases: what a plan names as its task."""

from freehold.tasks.definition import TaskDefinition, rates, task_definition, task_digest, task_names
from freehold.tasks.problem import build_task, prepare_for, schema_of, under
from freehold.tasks.tables import build, classifier, regressor, tabular

__all__ = [
    "TaskDefinition",
    "build",
    "build_task",
    "classifier",
    "prepare_for",
    "rates",
    "regressor",
    "schema_of",
    "tabular",
    "task_definition",
    "task_digest",
    "task_names",
    "under",
]
