"""Studies that keep learning: each cycle trains and measures; between two cycles all runs of the study rest.

When the next cycle begins is in the store. A coordinator that was down at that time begins it when it is back, once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import sqlalchemy as sa

from freehold.coordinator import study_records as records
from freehold.coordinator.run import OpenRun
from freehold.coordinator.store import Store
from freehold.events import Event, Listener
from freehold.wire.admin import Schedule

LOOK_S = 60.0
"""The longest until the clock is looked at again: a machine may sleep, and its clock may be set."""

Step = Callable[[], Coroutine[Any, Any, None]]


class Schedules:
    """The schedules of the studies under way."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        tell: Listener,
        *,
        check: Callable[[sa.Connection], None],
        spawn: Callable[[OpenRun, Step], None],
        later: Callable[[OpenRun, float, Callable[[], None]], None],
        advance: Step,
    ) -> None:
        """`check` raises Superseded unless this coordinator leads. `spawn` does a step until the store takes it; `later`
        calls after seconds; `advance` opens runs that wait.
        """
        self._store, self._clock, self._tell = store, clock, tell
        self._check = check
        self._spawn, self._later, self._advance = spawn, later, advance

    def of(self, study: str) -> Schedule | None:
        """A study's schedule; None if it ends when it is measured."""
        return self._store.read(lambda c: schedule_of(c, study))

    def goes_on(self, study: str) -> bool:
        """Whether another cycle follows the one that is under way."""
        found = self.of(study)
        return found is not None and (found.times is None or found.cycle + 1 < found.times)

    def look(self, runs: Sequence[OpenRun]) -> None:
        """Begin the next cycle of a study if all its runs rest and it is time; if it is not, look again later."""
        first = runs[0]
        if first.closing or any(run.state != "resting" for run in runs):
            return
        found = self.of(first.study)
        assert found is not None, "only a study with a schedule rests"
        after_s = min(found.due - self._clock(), LOOK_S)
        if after_s > 0:
            self._later(first, after_s, lambda: self._spawn(first, self._advance))
            return
        first.closing = True  # nobody else begins it
        self._spawn(first, lambda: self._wake_up(runs))

    async def _wake_up(self, runs: Sequence[OpenRun]) -> None:
        if not await self._begin(runs[0].study):
            return
        for run in runs:
            if run.state == "resting":
                run.state, run.closing, run.doubtful = "waiting", False, False
        await self._advance()

    async def _begin(self, study: str) -> bool:
        """Enter the beginning of a study's next cycle, all of whose runs then wait to be opened; False if it was stopped."""
        now, before = self._clock(), self.of(study)
        assert before is not None
        rest = records.resting(study)

        def begin(connection: sa.Connection) -> bool:
            self._check(connection)
            if not records.is_running(connection, study):
                return False
            if connection.execute(rest).first() is not None:
                # Not there: the store kept what it had said it could not.
                records.begin_cycle(connection, study, cycle=before.cycle + 1, due=now + before.every_s)
                self._store.announce(connection, "study", study)
            return True

        begun = await self._store.write(begin, "coordinator.cycle")
        if begun:
            found = self.of(study)
            self._tell(Event("cycle.begun", {"study": study, "cycle": found.cycle if found else 0}))
        return begun


def schedule_of(connection: sa.Connection, study: str) -> Schedule | None:
    """A study's schedule as an operator is told of it."""
    row = records.schedule_of(connection, study)
    return None if row is None else Schedule(every_s=row.every_s, times=row.times, cycle=row.cycle, due=row.due)
