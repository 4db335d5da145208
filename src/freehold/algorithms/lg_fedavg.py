"""LG-FedAvg: personal representations below a shared head. Liang et al. 2020, arXiv:2001.01523."""

from __future__ import annotations

from freehold.algorithms.fedper import keeping
from freehold.core import Algorithm, Rate, Task


def lg_fedavg(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """The reverse of FedPer: the head is shared, the body is personal."""
    return keeping(task, "lg-fedavg", lambda name: not task.head(name), lr=lr)
