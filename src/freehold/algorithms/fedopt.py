"""FedOpt: the mean difference as a gradient for a server optimizer. Reddi et al., ICLR 2021, arXiv:2003.00295."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, Fraction, Rate, Round, Task, Tree, move, tree_map, zeros

Second = Callable[[Tensor, Tensor], Tensor]


def fedadam(
    task: Task, *, lr: Rate = 0.1, server_lr: Rate = 0.01, beta1: Fraction = 0.9, beta2: Fraction = 0.99, tau: Rate = 1e-3
) -> Algorithm:
    """`m = beta1 m + (1 - beta1) d`, `v = beta2 v + (1 - beta2) d^2`, `x += server_lr * m / (sqrt(v) + tau)`; d is the mean
    difference, m starts at 0 and v at tau^2. As published there is no bias correction (algorithm 2).
    """
    return _fedopt(task, "fedadam", lr, server_lr, beta1, tau, lambda v, d: beta2 * v + (1 - beta2) * d**2)


def fedyogi(
    task: Task, *, lr: Rate = 0.1, server_lr: Rate = 0.01, beta1: Fraction = 0.9, beta2: Fraction = 0.99, tau: Rate = 1e-3
) -> Algorithm:
    """As fedadam, but `v = v - (1 - beta2) d^2 sign(v - d^2)`."""
    return _fedopt(task, "fedyogi", lr, server_lr, beta1, tau, lambda v, d: v - (1 - beta2) * d**2 * (v - d**2).sign())


def fedadagrad(task: Task, *, lr: Rate = 0.1, server_lr: Rate = 0.1, beta1: Fraction = 0.9, tau: Rate = 1e-3) -> Algorithm:
    """As fedadam, but `v = v + d^2`."""
    return _fedopt(task, "fedadagrad", lr, server_lr, beta1, tau, lambda v, d: v + d**2)


def _fedopt(task: Task, name: str, lr: float, server_lr: float, beta1: float, tau: float, second: Second) -> Algorithm:
    params = task.parameters

    def init() -> Tree:
        return {"model": task.init, "mean": zeros(params), "square": tree_map(lambda t: t.new_full(t.shape, tau**2), params)}

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        step = {k: mean[k] for k in params}
        first = tree_map(lambda m, d: beta1 * m + (1 - beta1) * d, server["mean"], step)
        square = tree_map(second, server["square"], step)
        paced = tree_map(lambda m, v: server_lr * m / (v.sqrt() + tau), first, square)
        return {"model": move(server["model"], {**mean, **paced}), "mean": first, "square": square}

    return replace(
        fedavg(task, lr=lr), name=name, init=init, broadcast=lambda server: server["model"], server_update=server_update
    )
