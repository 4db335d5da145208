"""Which nodes there are: what they offer, and when they were last heard of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from freehold.coordinator.enrolment_tables import denied, nodes
from freehold.coordinator.store import Store
from freehold.coordinator.study_tables import offers

CONNECTED_S = 60.0
"""A node that was heard of within this time counts as connected: twice a poll, and some."""


@dataclass(kw_only=True)
class Seen:
    """One node."""

    datasets: frozenset[str]
    last: float = 0.0
    """Unix time; 0: not since the coordinator started."""


class Presence:
    """Nodes by name. What they offer is in the store, so that a restarted coordinator asks the same ones."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._nodes: dict[str, Seen] = {}

        def read(connection: sa.Connection) -> list[tuple[str, str]]:
            found = sa.select(offers.c.node, offers.c.datasets).join(nodes, nodes.c.name == offers.c.node)
            shut = sa.exists().where(denied.c.what == sa.literal("node/") + offers.c.node)
            return [(row.node, row.datasets) for row in connection.execute(found.where(nodes.c.left.is_(None), ~shut))]

        for name, datasets in store.read(read):
            self._nodes[name] = Seen(datasets=frozenset(filter(None, datasets.split(","))))

    async def heard(self, node: str, datasets: Sequence[str]) -> bool:
        """A node asks for work; whether it is new, or offers something else than before."""
        offered = frozenset(datasets)
        before = self._nodes.get(node)
        if before is not None and before.datasets == offered:
            before.last = self._clock()
            return False

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(offers).where(offers.c.node == node))
            connection.execute(sa.insert(offers).values(node=node, datasets=",".join(sorted(offered))))

        await self._store.write(write, "coordinator.offer")
        self._nodes[node] = Seen(datasets=offered, last=self._clock())
        return True

    def gone(self, node: str) -> None:
        """A node has left or is denied."""
        self._nodes.pop(node, None)

    def offering(self, dataset: str, connected_only: bool) -> list[str]:
        """Nodes with that data, sorted."""
        since = self._clock() - CONNECTED_S if connected_only else 0.0
        return sorted(name for name, seen in self._nodes.items() if dataset in seen.datasets and seen.last >= since)

    def all(self) -> dict[str, Seen]:
        """Every node."""
        return dict(self._nodes)
