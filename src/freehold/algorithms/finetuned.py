"""FedAvg+finetuning: trained on at home. Wang et al. 2019, arXiv:1910.10252; Yu et al. 2020, arXiv:2002.04758."""

from __future__ import annotations

from dataclasses import replace

from freehold.algorithms.fedavg import fedavg
from freehold.core import Algorithm, Batch, Rate, Steps, Task, Tree, descend


def fedavg_finetuned(task: Task, *, lr: Rate = 0.1, tune_lr: Rate | None = None) -> Algorithm:
    """FedAvg; each client then takes the plan's adaptation steps of SGD from the shared model, with `tune_lr` (default: lr).

    Stateless, and works for clients that never took part. Cheap, and among the strongest baselines.
    """

    def finetune(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        return descend(task.objective, shared, steps, lr if tune_lr is None else tune_lr)

    return replace(
        fedavg(task, lr=lr), name="fedavg-finetuned", adapt=finetune, personalize=lambda shared, personal: {**shared, **personal}
    )
