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
    """It has said goodbye here, or its connection ended while it waited for an answer, and it said nothing since."""
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
        self._said: dict[str, Seen] = {}
        """What nodes said last, while it is on its way into the store."""
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

    async def heard(
        self, node: str, datasets: Sequence[str] | None, sandbox: str = "", *, stops: bool = False
    ) -> frozenset[str] | None:
        """A node speaks, and may say what it offers and in what it trains. None if it offers what it did; else what it offers no
        longer: nothing, for one that is new, or was gone and is back.

        `stops`: it says goodbye. Of two requests that are here at once, as of a node that is stopped and started again, the
        later one counts: None for the other.
        """
        known = self._said.get(node) or self._nodes.get(node)
        self._heard.add(node)
        back = known is not None and known.stopped and not stops
        if known is not None:
            known.last, known.stopped = self._clock(), stops
        level = sandbox or ("" if known is None else known.sandbox)
        if datasets is None or (known is not None and (known.datasets, known.sandbox) == (frozenset(datasets), level)):
            return frozenset() if back else None
        seen = Seen(datasets=frozenset(datasets), last=self._clock(), stopped=stops, sandbox=level)

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(offers).where(offers.c.node == node))
            values = {"datasets": ",".join(sorted(seen.datasets)), "seen": seen.last, "sandbox": seen.sandbox}
            connection.execute(sa.insert(offers).values(node=node, **values))
            self._store.announce(connection, "nodes")

        self._said[node] = seen
        try:
            await self._store.write(write, "coordinator.offer")
        finally:
            last = self._said.get(node)
            if last is seen:
                del self._said[node]
        if last is None:
            return None  # it has left meanwhile
        before, self._nodes[node] = self._nodes.get(node), seen
        if last is not seen:
            return None
        return frozenset() if before is None else before.datasets - seen.datasets

    def stopped(self, node: str) -> None:
        """A node's connection has ended while it waited for an answer; it may come back."""
        if (seen := self._said.get(node) or self._nodes.get(node)) is not None:
            seen.stopped = True

    def gone(self, node: str) -> None:
        """A node has left or is denied."""
        self._nodes.pop(node, None)
        self._said.pop(node, None)
        self._heard.discard(node)

    def offering(self, dataset: str, connected_only: bool) -> list[str]:
        """Nodes with that data, sorted."""
        now, found = self._clock(), self._nodes.items()
        return sorted(name for name, seen in found if dataset in seen.datasets and (not connected_only or seen.connected(now)))

    def all(self) -> dict[str, Seen]:
        """Every node."""
        return dict(self._nodes)
