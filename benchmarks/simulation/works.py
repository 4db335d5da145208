"""The work: seven models on synthetic clients of unequal size, each a Freehold task, feed and algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.simulation.networks import ITEMS, LENGTH, LETTERS, LOSSES, NETWORKS
from freehold.algorithms.ditto import ditto
from freehold.algorithms.fedavg import fedavg
from freehold.algorithms.fedrep import fedrep
from freehold.core import Algorithm, Privacy, State, Task, private, task_from
from freehold.drawing import digest_seed
from freehold.engines import Feed, Work

SPREAD = 0.5
"""Of the logarithm of clients' sizes."""
LAM = 0.1
"""Ditto's."""
MAX_NORM = 1.0
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One row of the comparison."""

    name: str
    title: str
    network: str
    target: Literal["labels", "letters", "ratings"]
    algorithm: Literal["fedavg", "ditto", "fedrep"] = "fedavg"
    clients: int
    samples: int
    """Mean examples of a client."""
    batch: int
    epochs: int = 1
    lr: float = 0.05
    noise: float | None = None
    """Set: DP-SGD with this noise multiplier."""


_LOGISTIC = Workload(
    name="W1a", title="logistic regression", network="logistic", target="labels", clients=100, samples=50, batch=10
)
_MLP = replace(_LOGISTIC, name="W1b", title="MLP, 1 epoch", network="mlp")
_CNN = Workload(name="W2a", title="CNN", network="cnn", target="labels", clients=32, samples=100, batch=20, lr=0.01)
_TEXT = Workload(
    name="W3a", title="transformer", network="transformer", target="letters", clients=32, samples=30, batch=8, lr=0.1
)

WORKLOADS: Mapping[str, Workload] = {
    each.name: each
    for each in (
        _LOGISTIC,
        _MLP,
        replace(_MLP, name="W1b-E5", title="MLP, 5 epochs", epochs=5),
        replace(_MLP, name="W1b-ditto", title="MLP, Ditto", algorithm="ditto"),
        replace(_MLP, name="W1b-fedrep", title="MLP, FedRep", algorithm="fedrep"),
        _CNN,
        replace(_CNN, name="W2b", title="LEAF CNN", network="leaf"),
        _TEXT,
        replace(_TEXT, name="W3b", title="GRU", network="gru"),
        Workload(name="W4", title="matrix factorization", network="ratings", target="ratings", clients=200, samples=60, batch=20),
        replace(_MLP, name="DP", title="DP-SGD, MLP, no noise", clients=32, noise=0.0),
    )
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A workload with its data, on a device."""

    workload: Workload
    task: Task
    algorithm: Algorithm
    feed: Feed
    work: Work
    device: torch.device

    @property
    def clients(self) -> Sequence[str]:
        """All, each asked in every round."""
        return list(self.feed.rows)

    def drawn(self, client: str, index: int) -> list[Tensor]:
        """Rows of the table that each local step of a round reads: the same as the feed's, drawn anew."""
        rows, work = self.feed.rows[client]["train"], self.work
        out: list[Tensor] = []
        epochs = self.workload.epochs
        for pass_ in range(index * epochs, (index + 1) * epochs):
            seed = digest_seed("order", self.feed.seed, client, pass_)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            out += rows[order.to(rows.device)].tensor_split(-(-len(rows) // work.batch_size))
        return out


def sizes(clients: int, mean: int, seed: int = SEED, least: int = 2) -> list[int]:
    """Log-normal numbers of examples."""
    draws = torch.Generator().manual_seed(seed)
    logs = SPREAD * torch.randn(clients, generator=draws) + math.log(mean) - SPREAD**2 / 2
    return logs.exp().round().clamp(least, 4 * mean).int().tolist()


def ready(workload: Workload, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Ready:
    """Make the data, the model and the algorithm; the same in every process."""
    counts = sizes(workload.clients, workload.samples)
    x, y = _EXAMPLES[workload.network](sum(counts), torch.Generator().manual_seed(SEED))
    place = torch.device(device)
    ends = torch.tensor(counts).cumsum(0).tolist()
    nobody = torch.zeros(0, dtype=torch.int64, device=place)
    rows = {
        f"{i}": {"train": torch.arange(end - count, end, device=place), "validation": nobody, "test": nobody}
        for i, (count, end) in enumerate(zip(counts, ends, strict=True))
    }
    task = task_of(workload, device, dtype)
    x, y = (t.to(place, dtype if t.is_floating_point() else t.dtype) for t in (x, y))
    return Ready(
        workload=workload,
        task=task,
        algorithm=algorithm_of(workload, task),
        feed=Feed(x=x, y=y, rows=rows, seed=SEED),
        work=Work(batch_size=workload.batch, epochs=workload.epochs),
        device=place,
    )


def task_of(workload: Workload, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Task:
    """The learning problem, its model on the device."""
    torch.manual_seed(SEED)
    module = NETWORKS[workload.network]().to(device, dtype)
    classes = 62 if workload.network in ("cnn", "leaf") else 10
    task = task_from(module, LOSSES[workload.target][0], classes=classes if workload.target == "labels" else 0)
    if workload.noise is None:
        return task
    return private(task, Privacy(max_norm=MAX_NORM, noise_multiplier=workload.noise, expected_batch=float(workload.batch)))


def algorithm_of(workload: Workload, task: Task) -> Algorithm:
    """The algorithm with the settings that every contender uses."""
    if workload.algorithm == "ditto":
        return ditto(task, lr=workload.lr, lam=LAM)
    if workload.algorithm == "fedrep":
        return fedrep(task, lr=workload.lr)
    return fedavg(task, lr=workload.lr)


def module_of(workload: Workload, init: State) -> nn.Module:
    """The bare module in the task's initial state."""
    module = NETWORKS[workload.network]().to(next(iter(init.values())))
    module.load_state_dict(init)
    return module


def flop(workload: Workload) -> int:
    """Floating-point operations of a forward and backward pass over one example, as torch counts them."""
    module = NETWORKS[workload.network]()
    x, y = _EXAMPLES[workload.network](8, torch.Generator().manual_seed(SEED))
    with FlopCounterMode(display=False) as counter:
        LOSSES[workload.target][1](module(x), y).backward()
    return counter.get_total_flops() // 8


def flop_of_round(made: Ready) -> int:
    """Nominal: what one pass for each example of each epoch and model takes, however it is done."""
    passes = 2 if made.workload.algorithm in ("ditto", "fedrep") else 1
    return flop(made.workload) * len(made.feed.y) * made.workload.epochs * passes


def _features(shape: Sequence[int], classes: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def examples(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(count, *shape, generator=draws), torch.randint(classes, (count,), generator=draws)

    return examples


def _letters(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    text = torch.randint(LETTERS, (count, LENGTH + 1), generator=draws)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def _ratings(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randint(ITEMS, (count,), generator=draws), torch.randn(count, generator=draws)


_EXAMPLES = {
    "logistic": _features((784,), 10),
    "mlp": _features((784,), 10),
    "cnn": _features((1, 28, 28), 62),
    "leaf": _features((1, 28, 28), 62),
    "transformer": _letters,
    "gru": _letters,
    "ratings": _ratings,
}
