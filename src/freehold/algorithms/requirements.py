"""What some algorithms need of a task, checked when they are built, so that a run does not fail hours later."""

from __future__ import annotations

import torch

from freehold.core import Task
from freehold.errors import NotPrivate, TaskError


def gradients_only(task: Task, algorithm: str, touches: str) -> None:
    """Refuse record-level privacy: what leaves the node depends on `touches`, not on clipped gradients alone."""
    if task.objective.private is not None:
        raise NotPrivate(
            f"{algorithm} sends what depends on {touches}, which record-level privacy does not cover.",
            hint="Choose an algorithm that works by descend and gradient alone, e.g. fedavg or ditto.",
        )


def features_known(task: Task, algorithm: str) -> None:
    """Refuse a task whose head is not a linear layer on features [B, F]."""
    if not task.features:
        raise TaskError(
            f"{algorithm} works on the features that the head is given, but this model's head is not a linear layer.",
            hint="Name the linear layer that makes the outputs: task_from(…, head='…').",
        )


def output_per_class(task: Task, algorithm: str) -> None:
    """Refuse a task that is not classification with one logit per class from a linear head."""
    features_known(task, algorithm)
    width = tuple(task.top(task.init, torch.zeros(1, task.features, dtype=next(iter(task.parameters.values())).dtype)).shape[1:])
    if not task.classes or width != (task.classes,):
        raise TaskError(
            f"{algorithm} needs one output per class, but the model has outputs {list(width)} for {task.classes} classes.",
            hint="Use it on a classification task whose last layer has one output per class.",
        )
