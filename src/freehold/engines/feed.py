"""What engines feed clients with: everybody's rows in one table, and each round's local steps drawn from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from freehold.core import Batch, Steps, generator
from freehold.drawing import digest_seed
from freehold.engines.dealing import drawn, rows_of, shuffled
from freehold.errors import TooFewExamples, UsageError
from freehold.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a client trains in a round: whole passes over its data (`epochs`), or a number of `steps`."""

    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    continuing: bool = False
    """Whether a round of `steps` goes on in the client's shuffled data where the last one stopped."""
    last_batch: Literal["even", "short"] = "even"
    """How the examples of a pass that don't fill the last batch are dealt: over all batches, or in a short last one. One left
    over would make a step as long as that of a full batch, in a direction of its own."""
    poisson: bool = False
    """Whether each step draws every example with probability batch_size / n (DP-SGD's accounting needs it)."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.epochs is None) == (self.steps is None) or (self.epochs or self.steps or 0) < 1:
            raise UsageError(
                f"batch_size={self.batch_size}, epochs={self.epochs}, steps={self.steps} is no amount of work.",
                hint="Give a batch size of at least 1, and either epochs or steps, at least 1.",
            )


def planned_work(plan: Plan) -> tuple[Work, Work | None]:
    """What a plan has a client do in a round, and when it adapts the model to predict with (None: as much as in a round)."""
    training, more = plan.training, plan.adaptation
    work = Work(
        batch_size=training.batch_size,
        epochs=training.epochs,
        steps=training.steps,
        continuing=training.continuing,
        last_batch=training.last_batch,
        poisson=plan.privacy.unit == "record",
    )
    return work, replace(work, epochs=more.epochs, steps=more.steps, continuing=False) if more else None


Draw = Callable[[int, int, float], Tensor]
"""(steps, examples, chance) -> [steps, examples] bool: which examples take part in which step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """The data of a simulation: a table, and whose rows are whose."""

    x: Tensor
    """[T, ...]."""
    y: Tensor
    """[T]."""
    rows: Mapping[str, Mapping[str, Tensor]]
    """client -> split ("train", "validation", "test") -> rows of the table [N]."""
    seed: int = 0
    poisson: Draw | None = None
    """How Poisson sampling is drawn. None: from the seed, so that it can be repeated; a node needs what nobody can foretell."""

    def size(self, client: str, split: str = "train") -> int:
        """Examples of a client in a split."""
        return self.rows[client][split].shape[0]  # len() of a tensor costs ten times as much

    def batch(self, client: str, split: str) -> Batch:
        """All examples of a client's split as one batch [N]."""
        rows = self.rows[client][split]
        real = torch.ones(len(rows), dtype=torch.bool)
        return {"x": self.x[rows], "y": self.y[rows], "real": real, "live": real.any(), "key": torch.zeros((), dtype=torch.int64)}

    def batches(self, clients: Sequence[str], split: str) -> Batch:
        """`batch` of several clients, padded with zeros, with a leading client axis."""
        rows, real = self.split_rows(clients, split)
        none = torch.zeros(len(clients), dtype=torch.int64, device=self.device)
        columns = {"x": self.read(self.x, rows, real), "y": self.read(self.y, rows, real)}
        return {**columns, "real": real, "live": real.any(1), "key": none}

    def split_rows(self, clients: Sequence[str], split: str) -> tuple[Tensor, Tensor]:
        """Rows of a split, padded: ([C, N] int64, [C, N] bool, true where not padding)."""
        rows = [self.rows[c][split] for c in clients]
        sizes = [r.shape[0] for r in rows]
        found = rows_of(rows, sizes) if any(sizes) else (torch.zeros(len(rows), 0, dtype=torch.int64),) * 2
        return found[0].to(self.device), found[1].bool().to(self.device)

    def read(self, column: Tensor, rows: Tensor, real: Tensor) -> Tensor:
        """What `rows` [C, N] hold in a column [T, ...], zero where not `real`: [C, N, ...]."""
        if not rows.numel():
            return column.new_zeros(*rows.shape, *column.shape[1:])
        found = column.index_select(0, rows.flatten()).view(*rows.shape, *column.shape[1:])
        return found.masked_fill_(~real.view(*real.shape, *[1] * (column.dim() - 1)), 0)

    @property
    def device(self) -> torch.device:
        """Where the table is, and what is read from it."""
        return self.x.device

    def to(self, device: torch.device) -> Feed:
        """The same feed with its table on a device; what is drawn stays the same."""
        return self if device == self.device else replace(self, x=self.x.to(device), y=self.y.to(device))

    def steps(self, client: str, index: int, work: Work) -> Steps:
        """The local steps of one client in round `index`, without padding but in ragged last batches."""
        mine = self.cohort([client], index, work)
        return replace(mine.of_client(tuple(t[0] for t in mine.per_client())), trim=True)

    def count(self, client: str, index: int, work: Work) -> int:
        """How many steps a client has in round `index`."""
        first, end = _span(work, self.size(client), index)
        return end - first

    def cohort(self, clients: Sequence[str], index: int, work: Work) -> Steps:
        """The local steps of several clients in round `index`, padded, with a leading client axis.

        What a client draws depends on the seed, the round and the client alone.
        """
        rows = [self.rows[c]["train"] for c in clients]
        sizes = [r.shape[0] for r in rows]
        if not all(sizes):
            empty = clients[sizes.index(0)]
            raise TooFewExamples(f"Client {empty} has no training rows.", hint="Leave it out, or raise min_examples.")
        firsts, ends = zip(*[_span(work, n, index) for n in sizes], strict=True)
        mine = list(zip(clients, sizes, firsts, ends, strict=True))
        if work.poisson:
            dealt = drawn([self._chosen(c, index, work, n, end - first) for c, n, first, end in mine])
        else:
            size = work.batch_size
            orders = [
                _order(self.seed, c, p, n)
                for c, n, first, end in mine
                for p in range(first // -(-n // size), (end - 1) // -(-n // size) + 1)
            ]
            dealt = shuffled(orders, sizes, firsts, ends, size, even=work.last_batch == "even")
        keys = torch.zeros(dealt.live.shape, dtype=torch.int64)
        keys[dealt.live] = torch.cat([_keys(self.seed, index, c, end - first) for c, _, first, end in mine])
        table = {"x": self.x, "y": self.y}
        own = (*rows_of(rows, sizes), *dealt, keys)
        return Steps.from_tensors(table, tuple(t.to(self.device, non_blocking=True) for t in own), False)

    def _chosen(self, client: str, index: int, work: Work, size: int, count: int) -> Tensor:
        chance = min(1.0, work.batch_size / size)
        if self.poisson is not None:
            return self.poisson(count, size, chance)
        return torch.rand(count, size, generator=generator("poisson", self.seed, index, client), dtype=torch.float64) < chance


def _span(work: Work, size: int, index: int) -> tuple[int, int]:
    """(first, one past the last) of a round's steps, counted over a client's passes."""
    per_pass = max(1, -(-size // work.batch_size))
    if work.epochs is not None:
        return index * work.epochs * per_pass, (index + 1) * work.epochs * per_pass
    steps = work.steps or 0
    if work.continuing:
        return index * steps, (index + 1) * steps
    first = index * -(-steps // per_pass) * per_pass  # every round starts a new shuffle: no two rounds share a pass
    return first, first + steps


@lru_cache(maxsize=4096)
def _order(seed: int, client: str, pass_: int, size: int) -> Tensor:
    return torch.randperm(size, generator=_drawing("order", seed, client, pass_))


@lru_cache(maxsize=1024)
def _keys(seed: int, index: int, client: str, count: int) -> Tensor:
    return torch.randint(2**62, (count,), generator=_drawing("keys", seed, index, client))


_OWN = threading.local()


def _drawing(*parts: str | int) -> torch.Generator:
    """This thread's generator, seeded anew: making one costs as much as drawing."""
    if not hasattr(_OWN, "generator"):
        _OWN.generator = torch.Generator()
    seeded: torch.Generator = _OWN.generator.manual_seed(digest_seed(*parts))
    return seeded
