"""One run in memory: its open round, who was asked, who was heard, and their sum. All of it can be rebuilt from the store."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from freehold.coordinator.buffer import Buffer
from freehold.errors import TensorsMalformed
from freehold.plan import Contribution, Plan, Run
from freehold.wire.local import Mapped
from freehold.wire.messages import Blob
from freehold.wire.tally import FixedPointSum, Span, layout_of, most_bytes

State = Literal["waiting", "training", "measuring", "resting", "finished", "stopped"]


HEAVY_BYTES = 1 << 20
"""Unpacked on the event loop, more than this would keep the others waiting."""

Spans = Sequence[Span]
"""Where the tensors of a contribution lie."""


class OpenTally:
    """The sum of a round in memory that can be shared with the child, by descriptor."""

    def __init__(self, spec: Contribution, most_clients: int) -> None:
        length = layout_of(spec).length
        self.fd = os.memfd_create("tally", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, length)
        self._spec, self._memory = spec, mmap.mmap(self.fd, length)
        self.sum = FixedPointSum(spec, self._memory, most_clients=most_clients)

    def begin_anew(self, most_clients: int) -> None:
        """Be the sum of another round in the same memory: to get other pages from the kernel takes longer than to sum."""
        self.sum.clear()
        self.sum = FixedPointSum(self._spec, self._memory, most_clients=most_clients)

    def close(self) -> None:
        """Give the memory back, as soon as nobody looks at it: a thread may still check a contribution that came too late."""
        del self.sum, self._memory
        os.close(self.fd)


@dataclass(kw_only=True)
class OpenRun:
    """A run that is not over."""

    run: Run
    plan: Plan
    plan_blob: Blob
    bundle: Blob | None = None
    """The code that the plan names."""
    study: str
    signature: str | None = None
    """Of the plan."""
    state: State = "waiting"
    round: int = 0
    server: str | None = None
    shared: Blob | None = None
    cohort: tuple[str, ...] = ()
    population: int = 0
    deadline: float = 0.0
    received: dict[str, str] = field(default_factory=dict)
    """Node -> SHA-256 of its contribution, or "" for measures and refusals, in the open round."""
    declined: dict[str, int] = field(default_factory=dict)
    """Node -> error number, of those that declined the open round here and were not heard since. For status pages alone:
    who is asked again after a start of the coordinator declines again."""
    weights: dict[str, float] = field(default_factory=dict)
    """Node -> weight of its contribution, of those that are in the sum, or wait for the lock to get there."""
    entering: set[tuple[int, str]] = field(default_factory=set)
    """(round, node) of the contributions to synchronous rounds that are on their way into the store, and will count."""
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
    _members: frozenset[str] = frozenset()
    _members_of: tuple[str, ...] = ()

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

    def place_of(self, round: int, node: str, sha256: str) -> str:
        """The same of a node's contribution: too long for two of its making to have one name, short enough for its column."""
        return self.place(round, hashlib.sha256(f"{node} {sha256}".encode()).hexdigest()[:26])

    @cached_property
    def limit_bytes(self) -> int:
        """What a contribution may take as it travels: where zstd finds nothing to save, it adds a little."""
        most = most_bytes(self.run.contribution)
        return most if self.run.contribution.compression == "none" else most + (most >> 7)

    def is_heavy(self, body: bytes | int) -> bool:
        """Whether to look into a contribution takes a thread: it is no small row, or a few bytes that may unpack to many."""
        spec = self.run.contribution
        return not isinstance(body, bytes) or (spec.compression != "none" and most_bytes(spec) > HEAVY_BYTES)

    @property
    def quorum(self) -> int:
        """Answers that make the round count: of those that are still asked, or as many as the plan says."""
        if self.buffer is not None:
            return min(self.capacity, max(1, len({*self.cohort, *self.received})))
        return min(self.plan.round.quorum or len(self.cohort), self.capacity)

    @property
    def needs(self) -> int:
        """Answers without which the open round cannot close; 0 where none is open."""
        if self.state not in ("training", "measuring"):
            return 0
        return max(1, self.quorum) if self.state == "training" else 1

    def told_declined(self) -> dict[str, int]:
        """Node -> error number, of those that are not in the sum of the open round."""
        return {node: code for node, code in sorted(self.declined.items()) if node not in self.weights}

    @property
    def capacity(self) -> int:
        """How many may contribute to this round, however often others are asked in the place of those that declined."""
        if self.buffer is not None:
            return max(1, min(self.buffer.size, self.population))
        return max(1, len(self.cohort), min(self.plan.round.cohort or self.population, self.population))

    @property
    def _most(self) -> int:
        """For how many contributions the sum has room. With asynchronous rounds the same in all: one is looked into when it
        comes, and may count in a later round, with room for more."""
        return self.capacity if self.buffer is None else self.buffer.size

    def open(self, round: int, cohort: tuple[str, ...], population: int, deadline: float) -> None:
        """Ask a cohort: for contributions, or after the last round for measures."""
        if self.buffer is not None:
            self.buffer.opened(round, cohort, self)
        self.state = "training" if self.plan.training.trains(round) else "measuring"
        self.round, self.cohort, self.population, self.deadline = round, cohort, population, deadline
        self.received, self.weights, self.declined = {}, {}, {}
        self.closing = self.doubtful = False
        if self.state != "training" or self.folding.locked():  # somebody still adds to the old one
            self.drop_tally()
        if self.tally is not None:
            self.tally.begin_anew(self._most)
            self._notify()
        elif self.state == "training":
            self.tally = OpenTally(self.run.contribution, self._most)

    def awaits(self, node: str) -> bool:
        """Whether this node is asked and not yet heard."""
        return self.state in ("training", "measuring") and not self.closing and self.asks(node) and node not in self.received

    def asks(self, node: str) -> bool:
        """Whether this node is in the cohort."""
        if self._members_of is not self.cohort:
            # Thousands of nodes ask this of a cohort of a thousand.
            self._members_of, self._members = self.cohort, frozenset(self.cohort)
        return node in self._members

    def holds(self) -> set[str]:
        """Who has a place in the sum of the open round, or may still come to have it."""
        return {*self.cohort, *self.received, *(node for round, node in self.entering if round == self.round)}

    def shows(self, node: str, sha256: str) -> bool:
        """Whether these bytes belong to work that this node was asked for."""
        shown = (self.plan_blob, self.bundle, self.shared)
        return self.asks(node) and any(blob is not None and blob.sha256 == sha256 for blob in shown)

    @property
    def enough(self) -> bool:
        """As many are heard as make the round count, and no other is being entered."""
        return len(self.received) >= self.quorum and bool(self.received) and not (self.buffer and self.buffer.entering)

    @property
    def complete(self) -> bool:
        """There is nobody to wait for."""
        if self.buffer is not None and self.state == "training":
            return self.enough
        return bool(self.received) and all(node in self.received for node in self.cohort)

    def damping(self, round: int) -> float:
        """What a contribution is multiplied with that was asked for in that round."""
        return 1.0 if self.buffer is None else self.buffer.damping(self.round - round)

    def drop_tally(self) -> None:
        """Free the memory of a closed round."""
        if self.tally is not None:
            self.tally.close()
            self.tally = None
        self._notify()

    def _notify(self) -> None:
        if self.buffer is not None:
            self.buffer.notify()


def check(body: bytes | int, run: OpenRun, total: FixedPointSum, weight: float) -> Spans:
    """What is in a contribution, or behind a descriptor, that may be added to the run's sum.

    Raises SpecMismatch, WeightRefused or TensorsMalformed.
    """
    run.plan.training.check_weight(weight)
    if run.plan.training.weighting == "uniform" and weight != 1.0:
        raise TensorsMalformed(f"A contribution has the weight {weight}.", hint="The plan weighs all nodes alike, with 1.")
    if isinstance(body, bytes):
        return total.check(body, weight)
    with Mapped(body) as view:
        return total.check(view, weight)


def fold(body: bytes | int, total: FixedPointSum, weight: float, spans: Spans, damping: float = 1.0) -> None:
    """Add a contribution in which `check` has found these spans; raises OSError for what cannot be read."""
    if isinstance(body, bytes):
        total.add_checked(body, weight, spans, damping=damping)
        return
    with Mapped(body) as view:
        total.add_checked(view, weight, spans, damping=damping)
