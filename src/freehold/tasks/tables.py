"""Tasks on tables: classification and regression by a small network, for shipped data and for a user's own."""

from __future__ import annotations

import torch.nn.functional as F

from freehold.core import Task, task_from
from freehold.data import Prepared
from freehold.drawing import digest_seed
from freehold.models import mlp
from freehold.plan import Training
from freehold.tasks.definition import TaskDefinition, rates


def classifier(prepared: Prepared, seed: int, hidden: tuple[int, ...] = (16,)) -> Task:
    """Cross entropy over the classes of the data, one hidden layer."""
    classes = len(prepared.classes)
    width = prepared.x[0].numel()
    return task_from(mlp(width, classes, hidden=hidden, seed=digest_seed("init", seed)), F.cross_entropy, classes=classes)


def regressor(prepared: Prepared, seed: int, hidden: tuple[int, ...] = (16,)) -> Task:
    """Squared error of a standardized target, one hidden layer."""
    return task_from(mlp(prepared.x[0].numel(), 0, hidden=hidden, seed=digest_seed("init", seed)), F.mse_loss)


def build(prepared: Prepared, seed: int) -> Task:
    """A classifier or a regressor, as the data has classes or not."""
    return classifier(prepared, seed) if prepared.classes else regressor(prepared, seed)


def tabular() -> TaskDefinition:
    """A table that a user brings: one row an example, a client column, a target."""
    return TaskDefinition(
        name="tabular",
        title="A table of one's own",
        build=build,
        training=Training(rounds=30, batch_size=16, epochs=1),
        hyperparameters=rates(0.05),
        statistics="federated",
        min_examples=20,
    )
