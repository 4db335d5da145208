"""FLamby's Fed-Heart-Disease: the published protocol, so that published numbers can be held against ours.

Ogier du Terrail et al., NeurIPS Datasets and Benchmarks 2022, arXiv:2210.04620; code at owkin/FLamby, commit edacf54d:
`flamby/results/results_benchmark_fed_heart_disease` and `flamby/personalization_example`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from freehold.core import Task, task_from
from freehold.data import Prepared
from freehold.models import linear
from freehold.plan import Scalar, Training, Work
from freehold.tasks.definition import TaskDefinition

SEEDS = (42, 43, 44, 45, 46)
"""The seeds of the published table."""

SGD = Training(rounds=15, batch_size=4, steps=100, continuing=True, last_batch="short")
"""15 rounds of 100 steps; batches go on over rounds, as PyTorch's DataLoader makes them."""

ADAM = Training(rounds=1, batch_size=4, epochs=50, last_batch="short")
"""Pooled and local training: 50 passes of Adam."""

PUBLISHED: dict[str, tuple[str, dict[str, Scalar], Training, float, float]] = {
    "Pooled": ("local", {"lr": 0.001, "optimizer": "adam"}, ADAM, 0.7353, 0.003),
    "Local": ("local", {"lr": 0.001, "optimizer": "adam"}, ADAM, 0.7299, float("nan")),
    "FedAvg": ("fedavg", {"lr": 0.001}, SGD, 0.6850, 0.028),
    "FedProx": ("fedprox", {"lr": 0.001, "mu": 0.01}, SGD, 0.6850, 0.028),
    "SCAFFOLD": ("scaffold", {"lr": 0.001, "server_lr": 1.0}, SGD, 0.6840, 0.028),
    "FedAdam": ("fedadam", {"lr": 0.01, "server_lr": 0.01, "beta2": 0.999, "tau": 1e-8}, SGD, 0.7255, 0.014),
    "FedYogi": ("fedyogi", {"lr": 0.003162, "server_lr": 0.01, "beta2": 0.999, "tau": 1e-8}, SGD, 0.7314, 0.013),
    "FedAdagrad": ("fedadagrad", {"lr": 0.003162, "server_lr": 0.316228, "tau": 1e-8}, SGD, 0.7314, 0.013),
    "FedAvg, lr 0.00316": ("fedavg", {"lr": 0.00316227}, SGD, 0.7178, 0.016),
    "FedAvg+finetuning": ("fedavg-finetuned", {"lr": 0.00316227}, SGD, 0.7351, 0.009),
}
"""Row -> (algorithm, hyper-parameters, training, published mean over the hospitals, its standard deviation over seeds).

"Local" is derived: the diagonal of the published table of local models. The last two rows are of the table on
personalization, whose seeds cannot be replayed.
"""

TITLES = {"Pooled": "All data pooled", "Local": "Alone", "FedAvg+finetuning": "FedAvg + finetuning, lr 0.00316"}
"""What a report calls the rows that it does not call by their name."""


def heart_flamby() -> TaskDefinition:
    """Complete records of 740 patients, 13 features, logistic regression."""
    return TaskDefinition(
        name="heart-flamby",
        title="Fed-Heart-Disease, as published by FLamby",
        build=_logistic,
        training=SGD,
        adaptation=Work(steps=100),
        hyperparameters={"*": {"lr": 0.00316227}},
        noun=("hospital", "hospitals"),
    )


def _logistic(prepared: Prepared, seed: int) -> Task:
    # The published seeds go into torch's generator as they are: the table depends on where its models start.
    module = linear(prepared.x.shape[1], 0, seed=seed)
    return task_from(module, _binary_cross_entropy, classes=2)


def _binary_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="none")
