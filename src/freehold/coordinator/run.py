"""One run in memory: its open round, who was asked, who was heard, and their sum. All of it can be rebuilt from the store."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freehold.coordinator.buffer import Buffer
from freehold.errors import TensorsMalformed
from freehold.plan import Contribution, Plan, Run
from freehold.wire.codec import Entry
from freehold.wire.local import Mapped
from freehold.wire.messages import Blob
from freehold.wire.tally import FixedPointSum, layout_of

State = Literal["waiting", "training", "measuring", "resting", "finished", "stopped"]


Entries = Mapping[str, Entry]
"""Where the tensors of a contribution lie."""


class OpenTally:
    """The sum of a round in memory that can be shared with the child, by descriptor."""

    def __init__(self, spec: Contribution, most_clients: int) -> None:
        length = layout_of(spec).length
        self.fd = os.memfd_create("tally", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, length)
        self.sum = FixedPointSum(spec, mmap.mmap(self.fd, length), most_clients=most_clients)

    def close(self) -> None:
        """Give the memory back, as soon as nobody looks at it: a thread may still check a contribution that came too late."""
        del self.sum
        os.close(self.fd)


@dataclass(kw_only=True)
class OpenRun:
    """A run that is not over."""

    run: Run
    plan: Plan
    plan_blob: Blob
    study: str
    state: State = "waiting"
    round: int = 0
    server: str | None = None
    shared: Blob | None = None
    cohort: tuple[str, ...] = ()
    population: int = 0
    deadline: float = 0.0
    received: dict[str, str] = field(default_factory=dict)
    """Node -> SHA-256 of its contribution, or "" for measures and refusals, in the open round."""
    weights: dict[str, float] = field(default_factory=dict)
    counted: dict[str, str] = field(default_factory=dict)
    """The same of the round before, all of which counted."""
    tally: OpenTally | None = None
    folding: asyncio.Lock = field(default_factory=asyncio.Lock)
    buffer: Buffer | None = None
    """What a run with asynchronous rounds has beside."""
    closing: bool = False
    """No contribution is taken any more."""
    doubtful: bool = False
    """The store has said that it could not write the step that is being done, and may have written it all the same."""

    def __post_init__(self) -> None:
        if self.plan.round.mode == "asynchronous":
            self.buffer = Buffer(self.plan.round)

    @property
    def id(self) -> str:
        """Of the run."""
        return self.run.id

    def place(self, round: int, what: str) -> str:
        """The name of a file of this run, if it is one: `what` is the state, or whose contribution and which."""
        return f"{self.id}.{round}.{what}"

    @property
    def sum_bytes(self) -> int:
        """More than the tensors of a contribution take: eight bytes for each number."""
        return layout_of(self.run.contribution).length

    @property
    def quorum(self) -> int:
        """Answers that make the round count: of those that are still asked, or as many as the plan says."""
        if self.buffer is not None:
            return min(self.capacity, max(1, len({*self.cohort, *self.received})))
        return min(self.plan.round.quorum or len(self.cohort), self.capacity)

    @property
    def capacity(self) -> int:
        """How many may contribute to this round, however often others are asked in the place of those that declined."""
        if self.buffer is not None:
            return max(1, min(self.buffer.size, self.population))
        return max(1, len(self.cohort), min(self.plan.round.cohort or self.population, self.population))

    def open(self, round: int, cohort: tuple[str, ...], population: int, deadline: float) -> None:
        """Ask a cohort: for contributions, or after the last round for measures."""
        if self.buffer is not None:
            self.buffer.opened(round, cohort, self)
        self.state = "training" if self.plan.training.trains(round) else "measuring"
        self.round, self.cohort, self.population, self.deadline = round, cohort, population, deadline
        self.received, self.weights = {}, {}
        self.closing = self.doubtful = False
        self.drop_tally()
        if self.state == "training":
            self.tally = OpenTally(self.run.contribution, self.capacity)

    def awaits(self, node: str) -> bool:
        """Whether this node is asked and not yet heard."""
        return self.state in ("training", "measuring") and not self.closing and node in self.cohort and node not in self.received

    @property
    def enough(self) -> bool:
        """As many are heard as make the round count, and no other is being entered."""
        return len(self.received) >= self.quorum and bool(self.received) and not (self.buffer and self.buffer.entering)

    @property
    def complete(self) -> bool:
        """There is nobody to wait for."""
        if self.buffer is not None and self.state == "training":
            return self.enough
        return bool(self.cohort) and all(node in self.received for node in self.cohort)

    def damping(self, round: int) -> float:
        """What a contribution is multiplied with that was asked for in that round."""
        return 1.0 if self.buffer is None else self.buffer.damping(self.round - round)

    def drop_tally(self) -> None:
        """Free the memory of a closed round."""
        if self.tally is not None:
            self.tally.close()
            self.tally = None
        if self.buffer is not None:
            self.buffer.notify()


def check(body: bytes | Path, run: OpenRun, total: FixedPointSum, weight: float) -> Entries:
    """What is in a contribution that may be added to the run's sum; raises SpecMismatch or TensorsMalformed."""
    if run.plan.training.weighting == "uniform" and weight != 1.0:
        raise TensorsMalformed(f"A contribution has the weight {weight}.", hint="The plan weighs all nodes alike, with 1.")
    if isinstance(body, bytes):
        return total.check(body, weight)
    with body.open("rb") as file, Mapped(file.fileno()) as view:
        return total.check(view, weight)


def fold(body: bytes | Path, total: FixedPointSum, weight: float, entries: Entries, damping: float = 1.0) -> None:
    """Add a contribution in which `check` has found these entries; raises OSError for a file that cannot be read."""
    if isinstance(body, bytes):
        total.add_checked(body, weight, entries, damping=damping)
        return
    with body.open("rb") as file, Mapped(file.fileno()) as view:
        total.add_checked(view, weight, entries, damping=damping)
