"""What a run with asynchronous rounds remembers: who was asked in the last rounds, and who is being entered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

from freehold.plan import RoundPolicy

if TYPE_CHECKING:
    from freehold.coordinator.run import OpenRun


class Buffer:
    """Beside a run's open round. Methods run on the event loop."""

    def __init__(self, policy: RoundPolicy) -> None:
        self.size = policy.buffer or 1
        self.power, self.most = policy.staleness_power, policy.staleness_limit
        self.asked: dict[int, frozenset[str]] = {}
        """Round -> whom it asked: of the rounds before the open one whose contributions may still count."""
        self.since: dict[str, int] = {}
        """Node -> the round in which it was given what it may still be working at."""
        self.entering: set[str] = set()
        """Whose contribution is on its way into the store, and has a place in the open round."""
        self._changed = asyncio.Event()

    def damping(self, staleness: int) -> float:
        """What a contribution is multiplied with that is so many server updates old."""
        return float((1.0 + staleness) ** -self.power)

    def opened(self, round: int, cohort: Collection[str], before: OpenRun) -> None:
        """The run, as it was before, opens a round."""
        if before.state == "training" and before.round == round - 1:
            self.asked[before.round] = frozenset(before.cohort)
            busy = [node for node in before.cohort if node not in before.received]
            self.since = {node: self.since.get(node, before.round) for node in cohort if node in busy}
        self.since = {node: self.since.get(node, round) for node in cohort}
        self.asked = {index: nodes for index, nodes in self.asked.items() if round - index <= self.most}

    def notify(self) -> None:
        """There may be a place, or there will be none any more."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def change(self) -> None:
        """Wait for `notify`."""
        await self._changed.wait()
