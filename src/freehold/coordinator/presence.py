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
    stopped: bool = False
    """It has said goodbye here, and nothing since."""
    sandbox: str = ""
    """In what it trains, as it says."""

    def connected(self, now: float) -> bool:
        """Whether it counts as connected at this Unix time."""
        return not self.stopped and now - self.last < CONNECTED_S


class Presence:
    """Nodes by name. What they offer is in the store, so that a restarted coordinator, and others, ask the same ones."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._nodes: dict[str, Seen] = {}
        self._heard: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read who there is, also those that speak to other coordinators over the same database."""

        def read(connection: sa.Connection) -> list[tuple[str, str, float, str]]:
            found = sa.select(offers.c.node, offers.c.datasets, offers.c.seen, offers.c.sandbox).join(
                nodes, nodes.c.name == offers.c.node
            )
            shut = sa.exists().where(denied.c.what == sa.literal("node/") + offers.c.node)
            rows = connection.execute(found.where(nodes.c.left.is_(None), ~shut))
            return [(row.node, row.datasets, row.seen, row.sandbox) for row in rows]

        before, self._nodes = self._nodes, {}
        for name, datasets, seen, sandbox in self._store.read(read):
            last = max(seen, before[name].last if name in before else 0.0)
            stopped = name in before and before[name].stopped and seen <= before[name].last
            offered = frozenset(filter(None, datasets.split(",")))
            self._nodes[name] = Seen(datasets=offered, last=last, stopped=stopped, sandbox=sandbox)

    async def tell_others(self) -> None:
        """Write when the nodes that spoke since the last time were heard."""
        names, now, self._heard = sorted(self._heard), self._clock(), set()
        if names:
            await self._store.write(
                lambda c: c.execute(sa.update(offers).where(offers.c.node.in_(names)).values(seen=now)), "coordinator.offer"
            )

    async def heard(self, node: str, datasets: Sequence[str] | None, sandbox: str = "") -> frozenset[str] | None:
        """A node speaks, and may say what it offers and in what it trains. None if it offers what it did; else what no longer."""
        before = self._nodes.get(node)
        self._heard.add(node)
        if before is not None:
            before.last, before.stopped = self._clock(), False
        known = "" if before is None else before.sandbox
        same = before is not None and sandbox in ("", known)
        if datasets is None or (same and before is not None and before.datasets == frozenset(datasets)):
            return None
        sandbox = sandbox or known
        offered, now = frozenset(datasets), self._clock()

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(offers).where(offers.c.node == node))
            connection.execute(sa.insert(offers).values(node=node, datasets=",".join(sorted(offered)), seen=now, sandbox=sandbox))
            self._store.announce(connection, "nodes")

        await self._store.write(write, "coordinator.offer")
        self._nodes[node] = Seen(datasets=offered, last=now, sandbox=sandbox)
        return frozenset() if before is None else before.datasets - offered

    def stopped(self, node: str) -> None:
        """A node has said goodbye; it may come back."""
        if node in self._nodes:
            self._nodes[node].stopped = True

    def gone(self, node: str) -> None:
        """A node has left or is denied."""
        self._nodes.pop(node, None)
        self._heard.discard(node)

    def offering(self, dataset: str, connected_only: bool) -> list[str]:
        """Nodes with that data, sorted."""
        since = self._clock() - CONNECTED_S if connected_only else 0.0
        return sorted(name for name, seen in self._nodes.items() if dataset in seen.datasets and seen.last >= since)

    def all(self) -> dict[str, Seen]:
        """Every node."""
        return dict(self._nodes)
