"""FedProto: models stay at home, class prototypes travel. Tan et al., AAAI 2022, arXiv:2105.00243."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.algorithms.requirements import gradients_only, output_per_class
from freehold.core import Algorithm, Batch, ClientResult, Rate, Round, State, Steps, Strength, Task, Tree, descend, fix


def fedproto(task: Task, *, lr: Rate = 0.01, lam: Strength = 1.0) -> Algorithm:
    """Each client minimizes `loss + lam * mean_F (f(x) - C_y)^2`, C_y being the mean feature of class y over all clients.

    A client sends, per class, the sum of its features and their count, so the server's mean is exact and needs sums only.
    Prediction: the class whose prototype is nearest (logits `-||f(x) - C_y||^2`; the paper's section 4.3); a class without a
    prototype comes last; before the first round, and for a newcomer's untrained model, the head predicts.
    The regularizer is the mean over features, as in the authors' code.
    """
    gradients_only(task, "fedproto", "sums of the client's features")
    output_per_class(task, "fedproto")
    k, f = task.classes, task.features
    dtype = next(iter(task.parameters.values())).dtype

    def losses(state: State, batch: Batch) -> tuple[Tensor, State]:
        seen = task.run({k: state[k] for k in task.init}, batch, training=True)
        apart = (seen.features - state["prototypes"][batch["y"]]).square().mean(1)
        return task.losses(seen.outputs, batch["y"]) + lam * state["known"][batch["y"]] * apart, seen.buffers

    objective = replace(task.objective, losses=losses)

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        model = descend(fix(objective, shared), personal, steps, lr)
        mine = steps.everything()
        member = F.one_hot(mine["y"], k).to(dtype) * mine["real"][:, None]  # [N, K]
        sums = torch.einsum("nk,nf->kf", member, task.run(model, mine).features)
        return ClientResult({"sums": sums, "counts": member.sum(0)}, model)

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        heard = mean["counts"] > 0
        prototypes = mean["sums"] / torch.where(heard, mean["counts"], 1)[:, None]
        return {
            "prototypes": torch.where(heard[:, None], prototypes, server["prototypes"]),
            "known": torch.where(heard, 1, server["known"]),
        }

    def predict(shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        seen = task.run(personal, {"x": x})
        logits = -torch.cdist(seen.features, shared["prototypes"]).square()
        known = shared["known"] > 0
        last = logits.amin(1, keepdim=True) - 1
        return torch.where(known.any(), torch.where(known, logits, last), seen.outputs)

    return Algorithm(
        name="fedproto",
        task=task,
        init=lambda: {"prototypes": torch.zeros(k, f, dtype=dtype), "known": torch.zeros(k, dtype=dtype)},
        enroll=lambda shared: task.init,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda shared, personal: personal,
        predict=predict,
        statistics=frozenset({"sums", "counts"}),
        weighting="uniform",  # of sums, so each example counts once
    )
