"""Attacks on what leaves: how much they show of who was in the data, beside the ε that is claimed; and records read off updates.

Membership by the audit of one run (`freehold.privacy.audit`), against the real mechanisms: a guard, and DP-SGD in `descend`.
Inversion of real heart records: of one example by division, of a batch by matching the gradient's direction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from freehold import core
from freehold.core import Task, descend, task_from
from freehold.data.heart import heart
from freehold.node.release import released
from freehold.plan import Contribution, Privacy, TensorSpec
from freehold.privacy.accounting import Mechanism, epsilon
from freehold.privacy.audit import Guesses, least_epsilon
from freehold.study.trials import plan_for
from freehold.tasks import build_task, prepare_for, task_definition
from freehold.wire import codec
from freehold.wire.local import close, read, sealed

DELTA = 1e-5
BROKEN = 10.0
"""By how much noise is too little in the control."""
GUESSED = 0.2
"""Share of canaries that the attack guesses on: those with the highest and the lowest scores. Chosen before it looks."""

DIMENSIONS = 16
"""Of a canary contribution: the attack looks in one direction only, so more would change nothing but the time."""
CLIENT = Mechanism(noise_multiplier=2.0, count=2)
RECORD = Mechanism(noise_multiplier=3.0, sampling=0.5, count=8)
TOGETHER = 2
"""Records of a batch."""
STARTS = 3
SUCCESS = 0.1
"""A record counts as read where the relative error is below this."""


class Seeded:
    """Noise bits from a seed, so that a run can be repeated; a node's own come from the operating system."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.default_rng(seed)

    def fill(self, into: NDArray[np.uint16]) -> None:
        """Fill the array."""
        into[:] = self._bits.integers(0, 1 << 16, into.shape, np.uint16)

    def word(self) -> int:
        """64 more bits."""
        return int(self._bits.integers(0, 1 << 64, dtype=np.uint64))


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One run of a mechanism, attacked."""

    guesses: Guesses
    shown: float
    """The lower bound on ε, at 95 %."""
    claim: float
    """What the accounting says; inf without noise."""

    def as_row(self) -> dict[str, Any]:
        """For a table and JSON, which has no infinity."""
        told = {**self.guesses._asdict(), "shown_epsilon": round(self.shown, 3)}
        return {**told, "claimed_epsilon": round(self.claim, 3) if math.isfinite(self.claim) else None}


def audited(scores: NDArray[np.float64], included: NDArray[np.bool_], claim: float) -> Audit:
    """Guess "in" for the highest scores and "out" for the lowest, abstain between them."""
    half = max(1, round(len(scores) * GUESSED / 2))
    order = np.argsort(scores)
    right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
    guesses = Guesses(len(scores), 2 * half, right)
    return Audit(guesses=guesses, shown=least_epsilon(guesses, DELTA), claim=claim)


def client_level(canaries: int, seed: int, *, weaker: float = 1.0, noise: bool = True) -> Audit:
    """Nodes, each with a contribution of the largest norm there is or with zeros, through the guard's own mechanism.

    `weaker`: the noise is by so much less than is claimed. Without `noise` the plan promises nothing.
    """
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    spec = Contribution(tensors=(TensorSpec(name="w", shape=(DIMENSIONS,), dtype="float64"),))
    told = Privacy(unit="client", max_norm=1.0, noise_multiplier=CLIENT.noise_multiplier / weaker) if noise else Privacy()
    direction = np.ones(DIMENSIONS) / math.sqrt(DIMENSIONS)
    scores = np.zeros(canaries)
    for node, inside in enumerate(included):
        body = codec.write({"w": 2.0 * direction if inside else np.zeros(DIMENSIONS)})  # twice: it is clipped
        for index in range(CLIENT.count):
            scores[node] += direction @ _leaving(body, spec, told, Seeded((seed << 32) + node * CLIENT.count + index))["w"]
    return audited(scores, included, epsilon([CLIENT], DELTA) if noise else math.inf)


def record_level(canaries: int, seed: int, *, weaker: float = 1.0, noise: bool = True) -> Audit:
    """Records of one node, each alone on a feature of its own or without any, through DP-SGD as algorithms use it.

    The loss is linear, so that every gradient has the norm to which it is clipped, or none: the case that the accounting covers.
    """
    draws = torch.Generator().manual_seed(seed)
    included = torch.rand(canaries, generator=draws) < 0.5
    x = torch.diag(included.double() * 2.0)
    drawn = RECORD.sampling * canaries
    task = task_from(nn.Linear(canaries, 1, bias=False).double(), lambda outputs, y: -outputs[:, 0])
    if noise:
        told = core.Privacy(max_norm=1.0, noise_multiplier=RECORD.noise_multiplier / weaker, expected_batch=drawn)
        task = core.private(task, told)
    batches = []
    for index in range(RECORD.count):
        rows = (torch.rand(canaries, generator=draws) < RECORD.sampling).nonzero().flatten()
        real = torch.ones(len(rows), dtype=torch.bool)
        key = torch.tensor((seed << 16) + index)
        batches.append({"x": x[rows], "y": torch.zeros(len(rows)), "real": real, "live": real.any(), "key": key})
    after = descend(task.objective, task.init, batches, 1.0)
    (moved,) = (after[name] - task.init[name] for name in task.init)
    return audited(moved.flatten().numpy(), included.numpy(), epsilon([RECORD], DELTA) if noise else math.inf)


def _leaving(body: bytes, spec: Contribution, told: Privacy, stream: Seeded) -> dict[str, NDArray[np.float64]]:
    """What comes out of the guard's door."""
    fd = sealed(body, "departing")
    out = released(fd, spec, told, stream=lambda: stream)
    try:
        return {name: np.asarray(array, np.float64) for name, array in codec.arrays(read(out)).items()}
    finally:
        close({fd, out})


# Inversion. The attacker knows the model, the plan and the labels, and sees one update of one step.


@dataclass(frozen=True, kw_only=True)
class Records:
    """Real records, and the task that learns from them."""

    task: Task
    x: Tensor
    y: Tensor

    def update(self, rows: Tensor, kind: str, seed: int) -> dict[str, Tensor]:
        """The update of one step over these rows, as it leaves: "none", "client" or "record" is the plan's privacy."""
        objective = self.task.objective
        if kind == "record":
            told = core.Privacy(max_norm=1.0, noise_multiplier=RECORD.noise_multiplier, expected_batch=float(len(rows)))
            objective = core.private(self.task, told).objective
        real = torch.ones(len(rows), dtype=torch.bool)
        batch = {"x": self.x[rows], "y": self.y[rows], "real": real, "live": real.any(), "key": torch.tensor(seed)}
        after = descend(objective, self.task.init, [batch], 1.0)
        moved = {name: (self.task.init[name] - after[name]).detach().numpy() for name in after}
        spec = Contribution(tensors=tuple(TensorSpec(name=n, shape=a.shape, dtype=a.dtype.name) for n, a in moved.items()))
        told = Privacy(unit="client", max_norm=1.0, noise_multiplier=CLIENT.noise_multiplier) if kind == "client" else Privacy()
        found = _leaving(codec.write(moved), spec, told, Seeded(seed))
        return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def records() -> Records:
    """The heart task's own model, and the records of its hospitals."""
    definition = task_definition("heart")
    plan = plan_for(definition, "fedavg")
    prepared = prepare_for(definition, plan, heart(), seed=0)
    return Records(task=build_task(definition, prepared, plan, 0), x=prepared.x, y=prepared.y)


def by_division(update: dict[str, Tensor]) -> Tensor:
    """The record of an update from one: a linear layer's gradient is that of its bias, times the record."""
    weight, bias = update["0.weight"], update["0.bias"]
    unit = int(bias.abs().argmax())
    return weight[unit] / bias[unit]


def by_matching(data: Records, rows: Tensor, update: dict[str, Tensor], seed: int, steps: int, starts: int = STARTS) -> Tensor:
    """Records whose gradient points where the update does. Geiping et al., NeurIPS 2020, arXiv:2003.14053.

    The best of several starts, as the attacker sees it: by the angle that is left.
    """
    target = torch.cat([update[name].flatten() for name in data.task.init]).double()
    init = {name: value.double().requires_grad_() for name, value in data.task.init.items()}
    real = torch.ones(len(rows), dtype=torch.bool)
    found = []
    for start in range(starts):
        draws = torch.Generator().manual_seed(seed * STARTS + start)
        x = torch.randn(len(rows), data.x.shape[1], generator=draws, dtype=torch.float64).requires_grad_()
        adam = torch.optim.Adam([x], lr=0.1)
        for _ in range(steps):
            batch = {"x": x, "y": data.y[rows], "real": real, "live": real.any(), "key": torch.tensor(0)}
            grads = torch.autograd.grad(data.task.objective(init, batch)[0], list(init.values()), create_graph=True)
            apart = 1 - F.cosine_similarity(torch.cat([g.flatten() for g in grads]), target, dim=0)
            (x.grad,) = torch.autograd.grad(apart, [x])
            adam.step()
        found.append((float(apart.detach()), start, x.detach()))
    return min(found)[2]


def error(found: Tensor, truth: Tensor) -> float:
    """The relative error of records [B, D] in their best order; 1 is what zeros have, which are the mean of all records."""
    orders = itertools.permutations(range(len(truth)))
    return min(float((found[list(order)] - truth).norm() / truth.norm()) for order in orders)


def inversion(data: Records, kind: str, *, examples: int, batches: int, steps: int, starts: int = STARTS) -> dict[str, Any]:
    """Medians and shares over `examples` single records and `batches` batches."""
    draws = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.x), generator=draws)
    single = [
        error(by_division(data.update(order[i : i + 1], kind, i)).double()[None], data.x[order[i : i + 1]].double())
        for i in range(examples)
    ]
    several = []
    for index in range(batches):
        rows = order[TOGETHER * index : TOGETHER * (index + 1)]
        found = by_matching(data, rows, data.update(rows, kind, 1000 + index), index, steps, starts)
        several.append(error(found, data.x[rows].double()))
    return {
        "one_example_error": round(float(np.median(single)), 4),
        "one_example_read": round(float(np.mean(np.array(single) < SUCCESS)), 3),
        "batch_error": round(float(np.median(several)), 4),
    }


MEMBERSHIP: dict[str, Callable[[int, int], Audit]] = {
    "no noise": lambda canaries, seed: client_level(canaries, seed, noise=False),
    "client": client_level,
    "client, a tenth of the noise": lambda canaries, seed: client_level(canaries, seed, weaker=BROKEN),
    "record, no noise": lambda canaries, seed: record_level(canaries, seed, noise=False),
    "record": record_level,
    "record, a tenth of the noise": lambda canaries, seed: record_level(canaries, seed, weaker=BROKEN),
}
"""What is attacked, by name; the claim is that of the whole noise."""


def run(canaries: int = 4000, seeds: int = 5, examples: int = 50, batches: int = 6, steps: int = 1000) -> dict[str, Any]:
    """The bound of each mechanism, the largest of several runs; and what inversion reads."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name, attack in MEMBERSHIP.items():
        rows[name] = max((attack(canaries, seed) for seed in range(seeds)), key=lambda found: found.shown).as_row()
    data = records()
    read_off = {
        kind: inversion(data, kind, examples=examples, batches=batches, steps=steps) for kind in ("none", "client", "record")
    }
    return {"membership": rows, "inversion": read_off}
