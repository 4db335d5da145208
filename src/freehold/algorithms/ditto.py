"""Ditto: a personal model beside the shared one. Li et al., ICML 2021, arXiv:2012.04221."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Strength, Task, Tree, descend, proximal


def ditto(task: Task, *, lr: Rate = 0.1, lam: Strength = 1.0) -> Algorithm:
    """FedAvg for all, and on each node a personal model v that minimizes `loss(v) + lam/2 ||v - shared||^2`.

    lam = 0: local-only beside FedAvg; lam -> inf: FedAvg. `lr * lam` must stay below 2.
    """
    common = fedavg(task, lr=lr)

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        own = descend(proximal(task.objective, shared, lam), personal, steps, lr)
        return common.client_update(round, shared, {}, steps)._replace(personal=own)

    return replace(
        common,
        name="ditto",
        enroll=lambda shared: shared,
        client_update=client_update,
        personalize=lambda shared, personal: personal,
    )
