"""SCAFFOLD: control variates against client drift. Karimireddy et al., ICML 2020, arXiv:1910.06378."""

from __future__ import annotations

from dataclasses import replace

from freehold.core import Algorithm, ClientResult, Rate, Round, Steps, Task, Tree
from freehold.core.objective import descend, tilted
from freehold.core.trees import add, difference, move, scale, zeros


def scaffold(task: Task, *, lr: Rate = 0.1, server_lr: Rate = 1.0) -> Algorithm:
    """Each local step follows `g - c_i + c`; afterwards `c_i+ = c_i - c + (shared - local) / (K lr)` (option II, K steps),
    and the server sets `x += server_lr * mean(local - x)`, `c += |S|/N * mean(c_i+ - c_i)`.

    Means are weighted by training examples, as in FLamby; scaffold-uniform is the paper's. A node keeps c_i; the
    contribution is twice the model.
    """
    params = task.parameters

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        model, c = shared["model"], shared["control"]
        local = descend(tilted(task.objective, difference(c, personal)), model, steps, lr)
        count = steps.live.sum()
        walked = {k: (model[k] - local[k]) / lr / count for k in params}
        control = add(difference(personal, c), walked)
        return ClientResult({"model": difference(local, model), "control": difference(control, personal)}, control)

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        share = round.cohort / round.population
        # Buffers are averaged: a step of another length would take a running variance below zero.
        step = {k: server_lr * d if k in params else d for k, d in mean["model"].items()}
        return move(server, {"model": step, "control": scale(mean["control"], share)})

    return Algorithm(
        name="scaffold",
        task=task,
        init=lambda: {"model": task.init, "control": zeros(params)},
        enroll=lambda shared: zeros(params),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda shared, personal: shared["model"],
        statistics=frozenset({"control"}),
    )


def scaffold_uniform(task: Task, *, lr: Rate = 0.1, server_lr: Rate = 1.0) -> Algorithm:
    """SCAFFOLD as in the paper: every client of the cohort counts the same, whatever its number of examples."""
    return replace(scaffold(task, lr=lr, server_lr=server_lr), name="scaffold-uniform", weighting="uniform")
