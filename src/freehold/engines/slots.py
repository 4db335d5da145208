"""Personal states in memory that all processes of a machine share: each client has a place for two, the committed one and the
next. Processes write the next ones; the parent alone says which one counts, so that none of them can lose or tear a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freehold.core import Round, Tree, stack, tree_map
from freehold.engines.packed import Layout, Memory, layout_of, write
from freehold.engines.shards import balanced
from freehold.engines.store import PersonalStore


class Slots(NamedTuple):
    """The memory, as any of the processes sees it."""

    states: Tree
    """[2 * clients, ...]: place i and place clients + i are client i's."""
    counts: Tensor
    """[clients] int8: 0 where neither counts, else 1 or 2."""

    def committed(self, slots: Tensor) -> Tensor:
        """Places of the committed states of clients [n]; they must have one."""
        return (self.counts[slots].long() - 1) * len(self.counts) + slots

    def free(self, slots: Tensor) -> Tensor:
        """Places of their next states."""
        return (self.counts[slots] == 1).long() * len(self.counts) + slots


def slots_layout(personal: Tree, clients: int) -> Layout:
    """The layout for so many clients with states like this one."""
    return layout_of(
        {
            "states": tree_map(lambda t: t.new_empty((1,)).expand(2 * clients, *t.shape), personal),
            "counts": torch.empty(1, dtype=torch.int8).expand(clients),
        }
    )


def slots_in(memory: Memory, layout: Layout) -> Slots:
    """What lies in the memory."""
    tree = memory.tree(layout)
    return Slots(tree["states"], tree["counts"])


class SlotStore(PersonalStore):
    """A worker's store: reads what counts, writes what is next, decides nothing."""

    def __init__(self, enroll: Callable[[Tree], Tree], slots: Slots, clients: Sequence[str]) -> None:
        super().__init__(enroll)
        self._slots, self._at = slots, {client: i for i, client in enumerate(clients)}

    def read(self, client: str, shared: Tree) -> Tree:
        """A copy of the committed state, or a first one."""
        at = torch.tensor([self._at[client]])
        if not self._slots.counts[at]:
            return self._enroll(shared)
        place = int(self._slots.committed(at))
        return tree_map(lambda t: t[place].clone(), self._slots.states)

    def stage(self, client: str, personal: Tree) -> None:
        """Write the next state."""
        place = int(self._slots.free(torch.tensor([self._at[client]])))
        tree_map(lambda there, t: there[place].copy_(t), self._slots.states, personal)

    def gather(self, clients: Sequence[str], shared: Tree) -> Tree:
        """What `read` gives for each, as one tree with a leading client axis."""
        at = torch.tensor([self._at[c] for c in clients])
        if not bool(self._slots.counts[at].all()):
            return stack([self.read(c, shared) for c in clients])
        places = self._slots.committed(at)
        return tree_map(lambda t: t.index_select(0, places), self._slots.states)

    def scatter(self, clients: Sequence[str], stacked: Tree) -> None:
        """`stage` for each, from one tree with a leading client axis."""
        places = self._slots.free(torch.tensor([self._at[c] for c in clients]))
        tree_map(lambda there, t: there.index_copy_(0, places, t), self._slots.states, stacked)


class SlotStates:
    """The parent's side. Every process can reach every state, so each round is dealt out anew, evenly."""

    def __init__(self, slots: Slots, clients: Sequence[str], cost: Callable[[str], float], places: int) -> None:
        self._slots, self._cost, self._places = slots, cost, places
        self._at = {client: i for i, client in enumerate(clients)}
        self._next = torch.empty(0, dtype=torch.int64)

    def parts(self, clients: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Evenly by cost."""
        return balanced(clients, self._cost, self._places)

    def collecting(self, round: Round, clients: Sequence[str]) -> None:
        """These are about to get new states."""
        self._next = torch.tensor([self._at[c] for c in clients])

    def settle(self, counted: bool) -> None:
        """Commit those, or drop them."""
        if counted:
            self._slots.counts[self._next] = 1 + (self._slots.counts[self._next] == 1).to(torch.int8)
        self._next = torch.empty(0, dtype=torch.int64)

    def renewed(self, place: int) -> None:
        """Nothing is lost with a process."""

    def committed(self) -> Mapping[str, Tree]:
        """client -> its committed state, as a copy."""
        there = self._slots.counts.nonzero().flatten()
        places, clients = self._slots.committed(there).tolist(), list(self._at)
        return {
            clients[i]: tree_map(lambda t, place=place: t[place].clone(), self._slots.states)
            for i, place in zip(there.tolist(), places, strict=True)
        }

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these."""
        self._slots.counts.zero_()
        for client, state in states.items():
            write(tree_map(lambda t, at=self._at[client]: t[at], self._slots.states), state)
            self._slots.counts[self._at[client]] = 1
