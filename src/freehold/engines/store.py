"""Personal states of a simulation's clients, kept outside of the algorithm, in two phases: pending, then committed.

`PersonalStore` keeps them in memory, `Arena` on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from freehold.core import Tree, at, stack


class PersonalStates(Protocol):
    """client -> personal state; engines don't know where it lies."""

    def read(self, client: str, shared: Tree) -> Tree:
        """The committed state, or a first one, which is not kept: reading changes nothing."""

    def stage(self, client: str, personal: Tree) -> None:
        """Keep a new state as pending."""

    def gather(self, clients: Sequence[str], shared: Tree) -> Tree:
        """What `read` gives for each, as one tree with a leading client axis."""

    def scatter(self, clients: Sequence[str], stacked: Tree) -> None:
        """`stage` for each, from one tree with a leading client axis."""

    def settle(self, counted: bool) -> None:
        """Commit what is pending, or drop it."""

    def committed(self) -> Mapping[str, Tree]:
        """All committed states."""

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these states."""


class PersonalStore:
    """client -> personal state. What a round staged counts only once it is settled."""

    def __init__(self, enroll: Callable[[Tree], Tree]) -> None:
        self._enroll = enroll
        self._committed: dict[str, Tree] = {}
        self._pending: dict[str, Tree] = {}

    def read(self, client: str, shared: Tree) -> Tree:
        """The committed state, or a first one, which is not kept: reading changes nothing."""
        return self._committed[client] if client in self._committed else self._enroll(shared)

    def stage(self, client: str, personal: Tree) -> None:
        """Keep a new state as pending."""
        self._pending[client] = personal

    def gather(self, clients: Sequence[str], shared: Tree) -> Tree:
        """What `read` gives for each, as one tree with a leading client axis."""
        return stack([self.read(c, shared) for c in clients])

    def scatter(self, clients: Sequence[str], stacked: Tree) -> None:
        """`stage` for each, from one tree with a leading client axis."""
        for i, client in enumerate(clients):
            self.stage(client, at(stacked, i))

    def settle(self, counted: bool) -> None:
        """Commit what is pending, or drop it."""
        if counted:
            self._committed |= self._pending
        self._pending = {}

    def committed(self) -> Mapping[str, Tree]:
        """All committed states, for a checkpoint."""
        return dict(self._committed)

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from the states of a checkpoint."""
        self._committed, self._pending = dict(states), {}
