"""Whom a round asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from freehold.coordinator import asynchronous
from freehold.coordinator.run import OpenRun
from freehold.drawing import draw_cohort


class Cohorts:
    """Draws cohorts from the nodes that there are."""

    def __init__(self, nodes: Callable[[str, bool], Sequence[str]]) -> None:
        """`nodes(dataset, connected_only)` lists who may be asked, sorted."""
        self._nodes = nodes

    def population(self, run: OpenRun) -> list[str]:
        """Who may be asked: of devices, those that are connected."""
        return list(self._nodes(run.plan.task.name, run.plan.clients == "devices"))

    def withdrawn(self, run: OpenRun) -> list[str]:
        """Who is asked, and neither heard nor to be asked any more: it offers the data no longer."""
        offering = set(self._nodes(run.plan.task.name, False))
        return [node for node in run.cohort if node not in run.received and node not in offering]

    def draw(self, run: OpenRun, round: int) -> tuple[list[str], int]:
        """Whom to ask in a round, everybody where it measures; and of how many."""
        population, trains = self.population(run), run.plan.training.trains(round)
        if run.buffer is not None and trains:
            return asynchronous.draw(run, run.buffer, round, population), len(population)
        asked = run.plan.round.cohort if trains else None
        size = min(asked or len(population), len(population))
        return draw_cohort(population, size, seed=run.run.seed, index=round) if population else [], len(population)

    def once_more(self, run: OpenRun) -> list[str]:
        """Whom to ask in a round that is short of its quorum: also those that declined, and others as far as there is room."""
        population = self.population(run)
        if run.buffer is not None:
            return asynchronous.once_more(run, population)
        size = min(run.capacity, len(population))
        drawn = draw_cohort(population, size, seed=run.run.seed, index=run.round) if size else []
        held = run.holds()
        others = [node for node in drawn if node not in held]
        room = run.capacity - len(held)
        return sorted([*run.cohort, *others[: max(room, 0)]])
