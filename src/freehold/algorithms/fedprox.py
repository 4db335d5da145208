"""FedProx: FedAvg with a leash. Li et al., MLSys 2020, arXiv:1812.06127."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Strength, Task, Tree, descend, difference, proximal


def fedprox(task: Task, *, lr: Rate = 0.1, mu: Strength = 0.01) -> Algorithm:
    """FedAvg in which clients minimize `loss(w) + mu/2 ||w - shared||^2`. mu = 0: FedAvg."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        return ClientResult(difference(descend(proximal(task.objective, shared, mu), shared, steps, lr), shared), personal)

    return replace(fedavg(task, lr=lr), name="fedprox", client_update=client_update)
