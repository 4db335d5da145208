"""Steps of runs as tasks: tried again while the store cannot be written; one that raises anything else ends its study."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from freehold.coordinator.lease import Superseded
from freehold.coordinator.run import OpenRun
from freehold.errors import CoordinatorError, FreeholdError, StoreError
from freehold.events import Event, Listener

RETRY_S = 1.0
"""Between two attempts to write to a store that is full or away."""

Step = Callable[[], Coroutine[Any, Any, None]]


class Steps:
    """The steps under way. Methods run on the event loop."""

    def __init__(self, fail: Callable[[OpenRun, FreeholdError], Coroutine[Any, Any, None]], tell: Listener) -> None:
        """`fail(run, error)` ends the study of a run that cannot go on."""
        self._fail, self._tell = fail, tell
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    @property
    def closing(self) -> bool:
        """Whether nothing new is begun."""
        return self._stopped.is_set()

    def begin(self, run: OpenRun, work: Step) -> None:
        """Do a step of a run."""
        task = asyncio.get_running_loop().create_task(self._persist(run, work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Wait for what is being written; what waits for the store is given up."""
        self._stopped.set()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _persist(self, run: OpenRun, work: Step) -> None:
        failed = False
        while True:
            try:
                await work()
                return
            except Superseded:
                return  # what the one that leads has written is taken over from the store
            except StoreError as error:
                run.doubtful = True
                self._tell(_failed(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), RETRY_S)
                if self.closing:
                    return
            except Exception as error:
                if failed:
                    raise
                failed = True
                self._tell(_failed(error))
                found = error if isinstance(error, FreeholdError) else CoordinatorError(f"({type(error).__name__})")
                work = partial(self._fail, run, found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(_failed(error))


def _failed(error: BaseException) -> Event:
    code = error.code if isinstance(error, FreeholdError) else 0
    return Event("coordinator.error", {"kind": type(error).__name__, "code": code})
