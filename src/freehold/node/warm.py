"""A study as a guard knows it: its plan, what was claimed before, and the trainer that stays warm from round to round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from freehold.errors import PeerGone, TrainerFailed
from freehold.node.claims import Claims
from freehold.node.errands import MeasureErrand, TrainErrand
from freehold.node.jobs import Failed, MeasureJob, TrainJob
from freehold.plan import Plan, runs_of
from freehold.wire.local import close
from freehold.wire.process import Child

TRAINING_LIMIT_S = 3600.0
"""For one piece of work in all, however often its round is prolonged; and for reading the data."""

SHORTEST_S = 0.05
"""Waited for at least, where nothing is left: what is there already is taken."""

MOST_WORDS = 2000
"""Of what a trainer says about an error: its message must fit into another one."""

IDLE_LIMIT_S = 600.0
"""A trainer that had nothing to do for so long is ended; it costs two seconds to start another."""


class _Busy(NamedTuple):
    run: str
    round: int
    since: float
    """On the monotonic clock."""


class WarmStudy:
    """One study."""

    def __init__(self, plan: Plan, text: bytes, trainer: Child, claims: Claims) -> None:
        self.plan, self.text, self.trainer, self.claims = plan, text, trainer, claims
        self.runs = {run.id: run for run in runs_of(plan)}
        self.used = time.monotonic()
        self._busy: _Busy | None = None
        """What the trainer still works on, past the time that was left for it."""

    def ask(
        self, job: TrainJob | MeasureJob, fds: Sequence[int], errand: TrainErrand | MeasureErrand
    ) -> tuple[Any, list[int]] | None:
        """The trainer's answer; None if it is still busy when the time is up that is left. Raises TrainerFailed."""
        busy, self._busy = self._busy, None
        if busy is not None and (busy.run, busy.round) != (errand.run, errand.round):
            self.trainer.end()
            busy = None
        since = time.monotonic() if busy is None else busy.since
        limit_s = max(min(errand.left_s, since + TRAINING_LIMIT_S - time.monotonic()), SHORTEST_S)
        try:
            reply, got = self._answer(job, fds, limit_s, goes_on=busy is not None)
        except (PeerGone, TimeoutError, msgspec.MsgspecError) as error:
            if isinstance(error, TimeoutError) and time.monotonic() - since < TRAINING_LIMIT_S:
                self._busy, self.used = _Busy(errand.run, errand.round, since), time.monotonic()
                return None
            raise self._died(error) from error
        if isinstance(reply, Failed):
            close(got)
            raise TrainerFailed(f"({reply.code}) {reply.message}"[:MOST_WORDS], hint=reply.hint[:MOST_WORDS])
        return reply, got

    def start(self) -> None:
        """Have a trainer that has read the data; raises TrainerFailed, and DataUnfit."""
        try:
            self.trainer.start()
        except (PeerGone, TimeoutError, msgspec.MsgspecError) as error:
            raise self._died(error) from error

    def _died(self, error: Exception) -> TrainerFailed:
        self.trainer.end()
        return TrainerFailed(
            f"The trainer of {self.plan.name} died, stalled or answered nonsense ({type(error).__name__}).",
            hint="Most often there was not enough memory. The personal state is as it was.",
        )

    def nonsense(self) -> TrainerFailed:
        """The error for an answer that is none; such a trainer is ended."""
        self.trainer.end()
        return TrainerFailed(
            f"The trainer of {self.plan.name} answered nonsense.", hint="Its code is not to be trusted; nothing was sent."
        )

    def quit(self) -> None:
        """End a trainer that is busy."""
        if self._busy is not None:
            self.trainer.end()
            self._busy = None

    def rest(self) -> None:
        """End a trainer that had nothing to do for long."""
        if self._busy is None and time.monotonic() - self.used > IDLE_LIMIT_S:
            self.trainer.end()

    def _answer(self, job: TrainJob | MeasureJob, fds: Sequence[int], limit_s: float, *, goes_on: bool) -> tuple[Any, list[int]]:
        if goes_on:
            with contextlib.suppress(PeerGone):  # it died: asked anew, as at any other time
                return self.trainer.await_answer(timeout_s=limit_s)
        return self.trainer.ask(job, fds, timeout_s=limit_s, patient=True)
