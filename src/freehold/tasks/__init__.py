"""The use cases: what a plan names as its task."""

from freehold.tasks.definition import TaskDefinition, rates, task_definition, task_names
from freehold.tasks.problem import build_task
from freehold.tasks.tables import build, classifier, regressor, tabular

__all__ = [
    "TaskDefinition",
    "build",
    "build_task",
    "classifier",
    "rates",
    "regressor",
    "tabular",
    "task_definition",
    "task_names",
]
