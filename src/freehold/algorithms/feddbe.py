"""FedDBE: the mean feature is each client's own, the rest agrees. Zhang et al., NeurIPS 2023, arXiv:2311.14975."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from freehold.algorithms.requirements import features_known, gradients_only
from freehold.core import Algorithm, Batch, ClientResult, Fraction, Rate, Round, State, Steps, Strength, Task, Tree
from freehold.core.objective import descend, fix
from freehold.core.trees import difference

BIAS, RUNNING = "dbe.bias", "dbe.running"


def feddbe(task: Task, *, lr: Rate = 0.1, kappa: Strength = 1.0, momentum: Fraction = 0.1) -> Algorithm:
    """Minimize `loss(g(f(x) + b)) + kappa/2 * mean_F (z - c)^2`: b is a personal bias of the features, learned; z is the
    running mean of f(x), `z = (1 - momentum) z + momentum mean(batch)`; c is the mean feature of the first round's clients
    under the initial model, found from sums and counts, and kept (sections 4.2 and 4.3).

    The second term is the authors' code's: half the mean over features. Rounds train without it until c is known.
    """
    gradients_only(task, "feddbe", "sums of the client's features")
    features_known(task, "feddbe")
    empty = torch.zeros(task.features, dtype=next(iter(task.parameters.values())).dtype)

    def losses(state: State, batch: Batch) -> tuple[Tensor, State]:
        seen = task.run({k: state[k] for k in task.init}, batch, training=True, bend=lambda f: f + state[BIAS])
        real = batch["real"]
        mean = torch.where(real[:, None], seen.features, 0).sum(0) / real.sum().clamp(min=1)
        running = (1 - momentum) * state[RUNNING] + momentum * mean
        apart = 0.5 * (running - state["consensus"]).square().mean()
        return task.losses(seen.outputs, batch["y"]) + kappa * state["agreed"] * apart, {
            **seen.buffers,
            RUNNING: running.detach(),
        }

    objective = replace(task.objective, losses=losses, buffers=task.objective.buffers | {RUNNING})

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        model, mine = shared["model"], steps.everything()
        agreed = (shared["known"] > 0).to(empty.dtype)
        held = {"consensus": shared["consensus"] / torch.where(shared["known"] > 0, shared["known"], 1), "agreed": agreed}
        local = descend(fix(objective, held), {**model, **personal}, steps, lr)
        # The mean feature of the client's rows; with weights n it adds up to the mean over all rows. Zero once c is known.
        mean = mine["real"].to(empty.dtype) @ task.run(model, mine).features / mine["real"].sum()
        moved = difference({k: local[k] for k in model}, model)
        sent = {"model": moved, "consensus": (1 - agreed) * mean, "known": 1 - agreed}
        return ClientResult(sent, {k: local[k] for k in personal})

    def predict(shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        return task.run(shared["model"], {"x": x}, bend=lambda f: f + personal[BIAS]).outputs

    return Algorithm(
        name="feddbe",
        task=task,
        init=lambda: {"model": task.init, "consensus": empty, "known": empty.new_zeros(())},
        enroll=lambda shared: {BIAS: empty, RUNNING: empty},
        client_update=client_update,
        personalize=lambda shared, personal: shared["model"],
        predict=predict,
        in_step=True,  # c is the mean over the clients of the first round
    )
